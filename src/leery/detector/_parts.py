"""The parts of a fit that take long: each one file, kept until the detector is saved."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from leery._files import write_atomically
from leery.tasks import discard_parts, identity_of, open_parts, part_name

__all__ = ["FitParts"]

_SUFFIX = ".safetensors"


class FitParts:
    """A folder that keeps what a fit has trained, so that a fit which is cut off can be resumed.

    In a ``with`` block the folder belongs to this process until the block ends; outside of one,
    while a detector is fitted.

    Args:
        folder: of the parts; made where it is missing.
        resume: True to go on with the parts of a fit that was cut off; else they are made again.

    Example:
        >>> with FitParts(folder, resume=True) as parts:  # doctest: +SKIP
        ...     detector.fit(train, parts=parts).save("detector.leery")
        ...     parts.discard()
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        self.folder, self.resume = Path(folder), resume
        self._opened: list[Path] = []
        self._held: ExitStack | None = None

    @property
    def held(self) -> bool:
        """Whether it is in a ``with`` block."""
        return self._held is not None

    def __enter__(self) -> Self:
        """Hold on to what is opened until the block ends."""
        self._held = ExitStack()
        return self

    def __exit__(self, *raised: object) -> None:
        """Let go of it; a folder in which nothing was finished is removed."""
        assert self._held is not None
        held, self._held, self._opened = self._held, None, []
        held.__exit__(*raised)  # type: ignore[arg-type]  # what with itself passes on
        self._remove_if_empty()

    def __call__(
        self, modules: Iterable[str], facts: object, make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The tensors that a function makes, or made for the same facts before.

        Args:
            modules: names of the modules whose code decides about the result.
            facts: everything else that determines it, as JSON-serialisable values.
            make: the training.

        Raises:
            InputError: when the fit to be resumed had other facts.
            OutputError: when another process works in the folder, or it cannot be written.
        """
        assert self._held is not None
        folder = self.folder / f"{len(self._opened):02d}"
        self._opened.append(folder)
        parts = self._held.enter_context(
            open_parts(
                folder,
                identity_of(facts, modules),
                [1],
                resume=self.resume,
                count_rows=_readable,
                suffix=_SUFFIX,
            )
        )
        if not parts:
            path = folder / part_name(0, _SUFFIX)
            # Tensors may share memory, which the format does not allow.
            state = {
                name: tensor.clone(memory_format=torch.contiguous_format)
                for name, tensor in make().items()
            }
            write_atomically(path, safetensors.save(state))
            parts.append(path)
        return safetensors.load_file(parts[0])

    def discard(self) -> None:
        """Remove the parts that were opened, once the detector is saved."""
        for folder in self._opened:
            discard_parts(folder)
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        with suppress(OSError):
            self.folder.rmdir()


def _readable(part: Path) -> int:
    """1 if the file of a part can be read, else 0."""
    try:
        safetensors.load_file(part)
    except SafetensorError:
        return 0
    return 1
