"""Storage of the slow parts of a fit, one file each, until the detector is saved."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from leery._files import raise_reading_fault
from leery.tasks import Parts, identity_of, open_parts

__all__ = ["FitParts", "saved_tensors"]

_SUFFIX = ".safetensors"


class FitParts:
    """Folder for the trained parts of a fit, from which an interrupted fit can be resumed.

    This process holds the folder until the end of a ``with`` block, or without one, during the fit.

    Args:
        folder: folder of the parts; created if missing.
        resume: True to reuse the parts of an interrupted fit, False to train them again.
        others: further folders in which parts are looked up, such as those of other machines.

    Example:
        >>> with FitParts(folder, resume=True) as parts:  # doctest: +SKIP
        ...     detector.fit(train, parts=parts).save("guard.leery")
        ...     parts.discard()
    """

    def __init__(self, folder: Path, *, resume: bool = False, others: Sequence[Path] = ()) -> None:
        self.folder, self.resume, self.others = Path(folder), resume, others
        self._opened: list[Parts] = []
        self._held: ExitStack | None = None

    @property
    def held(self) -> bool:
        """True inside a ``with`` block."""
        return self._held is not None

    def __enter__(self) -> Self:
        """Hold the opened folders until the block ends."""
        self._held = ExitStack()
        return self

    def __exit__(self, *raised: object) -> None:
        """Release the folders; remove the parent folder if it is empty."""
        assert self._held is not None
        held, self._held, self._opened = self._held, None, []
        held.__exit__(*raised)  # type: ignore[arg-type]  # exception info from ``with``
        self._remove_if_empty()

    def __call__(
        self, modules: Iterable[str], facts: object, make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Return the tensors that a function computes, or the stored ones for the same facts.

        Args:
            modules: names of the modules whose code decides about the result.
            facts: everything else that determines the result, as JSON-serialisable values.
            make: function that trains and returns the tensors.

        Raises:
            InputError: when the fit to be resumed had other facts.
            OutputError: when another process uses the folder, or it cannot be written.
        """
        assert self._held is not None
        name = f"{len(self._opened):02d}"
        parts = self._held.enter_context(
            open_parts(
                self.folder / name,
                identity_of(facts, modules),
                [1],
                resume=self.resume,
                count_rows=_readable,
                suffix=_SUFFIX,
                others=[other / name for other in self.others if (other / name).is_dir()],
            )
        )
        self._opened.append(parts)
        if parts.missing():
            trained = saved_tensors(make())
            with parts.writing(0) as stream:
                stream.write(trained)
        return safetensors.load_file(parts.files()[0])

    def discard(self) -> None:
        """Remove the parts; call this once the detector is saved."""
        for parts in self._opened:
            parts.discard()
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        with suppress(OSError):
            self.folder.rmdir()


def saved_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file; tensors may share memory, which its format forbids."""
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.save(state)


def _readable(part: Path) -> int:
    """1 if the file of a part is complete, 0 if it is damaged.

    Raises:
        MachineError: when the file cannot be read for another reason.
    """
    try:
        safetensors.load_file(part)
    except (SafetensorError, OSError) as error:
        raise_reading_fault(part, error)
        return 0
    return 1
