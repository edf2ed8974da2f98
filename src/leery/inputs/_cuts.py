"""Consecutive inputs in parts, cut by the inputs alone."""

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from torch import Tensor

from leery.errors import InputError
from leery.inputs._format import Format
from leery.inputs._item import Item, printable
from leery.inputs._read import Sources, labelled_batch

__all__ = ["Cuts", "rows_at_once"]

_ROWS = 32, 1024
"""Smallest and largest number of inputs that are in memory at once."""

_ELEMENTS = 2**20
"""Target number of their elements; small inputs are read in larger numbers."""

_MAX_PARTS = 100_000
"""Number of parts beyond which a part holds more inputs than are in memory at once."""


class Cuts:
    """The inputs of sources, cut into parts that depend on the inputs alone.

    Args:
        paths: paths of the sources, as for :func:`leery.inputs.read`.
        form: format of the sources and conversion to model inputs.
        shape: shape of one input.
        without: files and folders to exclude when a folder is read, such as the output.

    Attributes:
        sizes: number of inputs of each part.
        listing: SHA-256 of the names, sizes and times of the files.

    Raises:
        InputError: when a path is missing or of an unsupported type.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        form: Format,
        shape: Sequence[int],
        *,
        without: Collection[Path] = (),
    ) -> None:
        self._list = partial(Sources, paths, form, without=without)
        self._sources, self._form = self._list(), form
        self.listing = _hash_of(self._sources)
        total = len(self._sources)
        self._rows = rows_at_once(shape)
        size = self._rows * max(1, -(-total // (self._rows * _MAX_PARTS)))
        self.sizes = [min(size, total - start) for start in range(0, total, size)]

    def items(self, numbers: Iterable[int]) -> Iterator[tuple[int, Iterator[list[Item]]]]:
        """Iterate over parts.

        Args:
            numbers: their numbers, in ascending order.

        Yields:
            The number of a part, and an iterator of its inputs, several at a time, which must be
            used up before the next part.

        Raises:
            InputError: when inputs were removed meanwhile.
        """
        for stretch in _stretches(numbers):
            items = self._sources.items(sum(self.sizes[: stretch[0]]))
            for number in stretch:
                yield number, self._several(items, self.sizes[number])

    def batches(
        self, numbers: Iterable[int]
    ) -> Iterator[tuple[int, Iterator[tuple[Tensor, Tensor]]]]:
        """Iterate over labelled parts.

        Args:
            numbers: as for :meth:`items`.

        Yields:
            The number of a part, and an iterator of batches of images ``(n, ...)`` and labels
            int64 ``(n,)``, without files that are not images.

        Raises:
            InputError: when an input cannot be read, has no label, or differs in shape.
        """
        for number, found in self.items(numbers):
            known = ([item for item in items if not item.stranger] for items in found)
            yield number, (labelled_batch(items, self._form) for items in known if items)

    def _several(self, items: Iterator[Item], count: int) -> Iterator[list[Item]]:
        """The next inputs, several at a time."""
        while count:
            found = list(islice(items, min(count, self._rows)))
            if len(found) < min(count, self._rows):
                raise InputError(_CHANGED)
            count -= len(found)
            yield found

    def check_unchanged(self) -> None:
        """Raise if files were added, removed or changed since this was made.

        Raises:
            InputError: when they were.
        """
        if _hash_of(self._list()) != self.listing:
            raise InputError(_CHANGED)


_CHANGED = (
    "expected the inputs to stay unchanged during the run, got changed ones; remove the folder of "
    "parts and start over"
)


def _hash_of(sources: Sources) -> str:
    """The SHA-256 of the files' names, sizes and times; a missing file is marked as gone."""
    listing = hashlib.sha256()
    for path in sources.files:
        try:
            stat = _stat(path)
            found = f"{stat.st_size}\0{stat.st_mtime_ns}"
        except FileNotFoundError:
            found = "gone"
        listing.update(f"{printable(path)}\0{found}\n".encode())
    return listing.hexdigest()


def _stat(path: Path) -> os.stat_result:
    """Size and time of a file, or of a broken link."""
    try:
        return path.stat()
    except OSError:
        # Raises again unless the file is missing, or a link leads nowhere.
        return path.stat() if path.exists() else path.lstat()


def rows_at_once(shape: Sequence[int]) -> int:
    """The number of inputs of a shape that are in memory at once."""
    least, most = _ROWS
    return min(most, max(least, _ELEMENTS // math.prod(shape)))


def _stretches(numbers: Iterable[int]) -> Iterator[list[int]]:
    """Stretches of consecutive numbers."""
    for _, stretch in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        yield [number for _, number in stretch]
