"""The parts of a fit that take long: each one file, kept until the detector is saved."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import torch as safetensors
from torch import Tensor

from leery._files import write_atomically
from leery.metrics import Metric
from leery.tasks import identity_of, open_parts, part_name

__all__ = ["FitParts"]

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class FitParts:
    """A folder in which the trained parts of a fit stand until they are no longer needed.

    Attributes:
        folder: of the parts.
        resume: True to go on with the parts of a fit that was cut off; else they are made again.
    """

    folder: Path
    resume: bool = False

    def __call__(
        self, metric: Metric, facts: object, make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The tensors that a function makes, or made for the same facts before.

        Args:
            metric: what is trained; its code is one of the facts.
            facts: all that decides about the result, as JSON has it.
            make: the training.

        Raises:
            InputError: when a fit is to be resumed that had other facts.
            OutputError: when another process works in the folder, or it cannot be written.
        """
        folder = self.folder / metric.name
        identity = identity_of(facts, {type(metric).__module__})
        with (
            self._removed_if_empty(),
            open_parts(
                folder, identity, [1], resume=self.resume, count_rows=lambda _: 1, suffix=_SUFFIX
            ) as parts,
        ):
            if not parts:
                state = {name: tensor.contiguous() for name, tensor in make().items()}
                parts.append(folder / part_name(0, _SUFFIX))
                write_atomically(parts[0], safetensors.save(state))
            return safetensors.load_file(parts[0])

    @contextmanager
    def _removed_if_empty(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self.folder.rmdir()
            raise

    def discard(self) -> None:
        """Remove the folder once the detector is saved."""
        shutil.rmtree(self.folder, ignore_errors=True)
