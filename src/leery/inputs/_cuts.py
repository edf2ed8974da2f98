"""Consecutive inputs in parts, cut by the inputs alone."""

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from torch import Tensor

from leery.errors import InputError
from leery.inputs._format import Format
from leery.inputs._item import Item, printable
from leery.inputs._read import Sources, labelled_batch

__all__ = ["Cuts", "part_rows"]

_PART_ROWS = 256, 1024
"""Minimum and maximum number of rows of a part."""

_PART_NUMBERS = 2**20
"""Target number of elements of a part's images; small images form parts with more rows."""


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
        total = len(self._sources)
        size = part_rows(shape)
        self.sizes = [min(size, total - start) for start in range(0, total, size)]
        self.listing = _hash_of(self._sources)

    def items(self, numbers: Iterable[int]) -> Iterator[tuple[int, list[Item]]]:
        """Iterate over parts.

        Args:
            numbers: their numbers, in ascending order.

        Yields:
            The number of a part, and its inputs.

        Raises:
            InputError: when inputs were removed meanwhile.
        """
        for stretch in _stretches(numbers):
            start = sum(self.sizes[: stretch[0]])
            items = self._sources.items(start)
            for number in stretch:
                found = list(islice(items, self.sizes[number]))
                if len(found) != self.sizes[number]:
                    raise InputError(_CHANGED)
                yield number, found

    def batches(self, numbers: Iterable[int]) -> Iterator[tuple[int, tuple[Tensor, Tensor] | None]]:
        """Iterate over labelled parts.

        Args:
            numbers: as for :meth:`items`.

        Yields:
            The number of a part, with its images ``(n, ...)`` and labels int64 ``(n,)``; None if
            none of its files is an image.

        Raises:
            InputError: when an input cannot be read, has no label, or differs in shape.
        """
        for number, items in self.items(numbers):
            known = [item for item in items if not item.stranger]
            yield number, labelled_batch(known, self._form) if known else None

    def check_unchanged(self) -> None:
        """Raise if files were added, removed or changed since this was made.

        Raises:
            InputError: when they were.
        """
        if _hash_of(self._list()) != self.listing:
            raise InputError(_CHANGED)


_CHANGED = (
    "expected the inputs to stay as they are meanwhile, got changed ones; remove the folder of "
    "parts and start over"
)


def _hash_of(sources: Sources) -> str:
    """The SHA-256 of the names, sizes and times of files."""
    listing = hashlib.sha256()
    for path in sources.files:
        stat = path.stat() if path.exists() else path.lstat()
        listing.update(f"{printable(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return listing.hexdigest()


def part_rows(shape: Sequence[int]) -> int:
    """The number of inputs of a shape in a part."""
    least, most = _PART_ROWS
    return min(most, max(least, _PART_NUMBERS // math.prod(shape)))


def _stretches(numbers: Iterable[int]) -> Iterator[list[int]]:
    """Stretches of consecutive numbers."""
    for _, stretch in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        yield [number for _, number in stretch]
