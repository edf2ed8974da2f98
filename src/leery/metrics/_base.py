"""Base class of metrics."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from leery._checks import Bounds
from leery.errors import InputError, LeeryError, brief, raise_machine_fault
from leery.observation import Needs, Observation

__all__ = ["Direction", "FitContext", "Metric", "check_metric", "metric_refused"]

Direction = Literal["larger", "smaller", "both"]
"""Which side of a metric's range is suspicious."""

Part = Callable[[Iterable[str], object, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]

_RESERVED = (
    *("name", "predicted", "score", "p_value", "adversarial", "error"),
    *("sentinel", "sentinel_flagged"),
)
"""Names used by columns of verdicts and of score files."""


@dataclass(frozen=True)
class FitContext:
    """Arguments for a metric that must be trained before the training data are observed.

    Attributes:
        model: the classifier.
        batches: function that returns a new iterator over the training data, (images, labels).
        seed: random seed.
        device: device of the classifier.
        batch_size: maximum number of images that the classifier processes at once.
        classes: the number of classes.
        bounds: pixel bounds; None if unknown.
        pixels: the bounds or, if they are unknown, the range of the first batch.
        progress: function of a description and the completed fraction, in [0, 1].
        part: function that returns trained tensors, from storage if a fit is resumed. Its arguments
            are the names of the modules whose code determines the training, everything else that
            determines it (as JSON-serialisable values), and a function that trains.
    """

    model: nn.Module
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    seed: int
    device: torch.device
    batch_size: int
    classes: int
    bounds: Bounds | None
    pixels: Bounds
    progress: Callable[[str, float], object]
    part: Part = lambda _modules, _facts, make: make()


class Metric(nn.Module):
    """Base class of metrics, which give one number per input to detect adversarial ones.

    To write a metric, subclass this, set the attributes and implement :meth:`forward`. A metric
    that learns from the training data also implements :meth:`update`, :meth:`merge` and
    :meth:`finish`. Fitted state must be held in buffers or submodules, because the detector file
    stores only these. Buffers that are undefined before the fit are registered as None. A metric
    whose :meth:`update` keeps what it learns elsewhere than in buffers of its own, such as in a
    list, also implements :meth:`learned` and :meth:`load_learned`, which pass it between processes.

    Attributes:
        name: name of the metric, unique in a detector.
        family: family of the metric; metrics of one family are largely redundant, and combiners may
            group them.
        direction: "larger" if large values are suspicious, "smaller", or "both".
        needs: parts of an observation that :meth:`update` and :meth:`forward` read.
        by_class: True if the distribution on clean images depends on the class; combiners then
            compare with clean images of the predicted class. Leave it False for metrics that mean
            the same in every class, such as a probability: the comparison would hide that the
            classifier is often uncertain in a class.
        differentiable: True if :meth:`forward` is differentiable; if not, :meth:`smooth` is a
            differentiable surrogate.
    """

    name: str
    family: str
    direction: Direction = "larger"
    needs: Needs = Needs()
    by_class: bool = False
    differentiable: bool = True

    def prepare(self, context: FitContext) -> None:
        """Train submodules, such as an auxiliary network; by default does nothing."""

    def update(self, seen: Observation, labels: Tensor) -> None:
        """Learn from a part of the training data; by default does nothing.

        Args:
            seen: observation of the part.
            labels: int64 ``(N,)``, the true classes, on the same device.
        """

    def merge(self, other: Self) -> None:  # noqa: ARG002 - what subclasses read
        """Add the state that another metric of this class learned from the next part.

        Merging parts in order must give the same result for every division into parts.
        """
        if self.learns:
            message = (
                f"expected {type(self).__name__} to implement merge(), got only update(); add it "
                "to fit in parts"
            )
            raise InputError(message)

    def learned(self) -> dict[str, Tensor]:
        """What this metric learned from its part, to be merged in another process.

        By default these are its own buffers, without those of submodules. ``leery fit`` refuses a
        metric whose :meth:`update` changes anything else, unless this method is overridden.

        Returns:
            Tensors by name.
        """
        return dict(self.named_buffers(recurse=False))

    def load_learned(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`learned` returned in another process."""
        for name, tensor in state.items():
            self._buffers[name] = tensor

    def finish(self) -> None:
        """Complete the fit after the last part; by default does nothing."""

    def forward(self, seen: Observation) -> Tensor:
        """The metric of each image, float64 ``(N,)``, finite."""
        raise NotImplementedError

    def smooth(self, seen: Observation) -> Tensor:
        """A differentiable surrogate of :meth:`forward`; by default the metric itself."""
        found: Tensor = self(seen)
        return found

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric, as JSON-serialisable values."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Load the ``state_dict()`` of a fitted metric.

        Raises:
            InputError: when tensors are missing or unknown, or a submodule has other shapes.
        """
        for owner, name, path in _undefined_buffers(self):
            if path not in state:
                message = f"expected the tensor {path} of {self.name}, got none; fit again"
                raise InputError(message)
            owner._buffers[name] = state[path]  # noqa: SLF001 - how torch itself assigns
        try:
            self.load_state_dict(dict(state), strict=True, assign=True)
        except RuntimeError as error:
            message = f"expected the tensors of {self.name}, got {_one_line(error)}; save it again"
            raise InputError(message) from error
        return self

    def check_classes(self, classes: int) -> None:
        """Raise if the fitted state is for another number of classes."""

    @property
    def learns(self) -> bool:
        """True if the metric learns from the training data."""
        return type(self).update is not Metric.update

    @property
    def merges(self) -> bool:
        """True if it learns, and what parts of the training data taught it can be merged."""
        return self.learns and type(self).merge is not Metric.merge

    @property
    def trains(self) -> bool:
        """True if the metric must be trained first."""
        return type(self).prepare is not Metric.prepare


@contextmanager
def metric_refused(metric: Metric) -> Iterator[None]:
    """Turn any exception of a metric into an InputError that names the metric.

    Raises:
        InputError: when the metric raises.
        MachineError: when it raises because of the machine.
    """
    try:
        yield
    except LeeryError:
        raise
    # A metric may be user code, which can raise any exception.
    except Exception as error:
        raise_machine_fault(error)
        message = (
            f"expected metric {metric.name!r} to be computed, got {brief(error)}; correct its code"
        )
        raise InputError(message) from error


def check_metric(metric: Metric) -> None:
    """Raise if the name, family or direction of a metric is invalid.

    Raises:
        InputError: when one of them is invalid.
    """
    kind = type(metric).__name__
    name = getattr(metric, "name", None)
    family = getattr(metric, "family", None)
    if not isinstance(name, str) or not name or "/" in name or name in _RESERVED:
        message = (
            f"expected {kind}.name as text without '/' and other than {', '.join(_RESERVED)}, got "
            f"{name!r}; rename the metric"
        )
        raise InputError(message)
    if not isinstance(family, str) or metric.direction not in get_args(Direction):
        message = (
            f'expected {kind}.family as text and {kind}.direction "larger", "smaller" or "both", '
            f"got {family!r} and {metric.direction!r}; correct them"
        )
        raise InputError(message)


def _undefined_buffers(module: nn.Module) -> Sequence[tuple[nn.Module, str, str]]:
    """Buffers that are None: their module, their name in it, and their path."""
    return [
        (owner, name, f"{prefix}.{name}" if prefix else name)
        for prefix, owner in module.named_modules()
        for name, buffer in owner._buffers.items()  # noqa: SLF001 - None is not among buffers()
        if buffer is None and name not in owner._non_persistent_buffers_set  # noqa: SLF001
    ]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
