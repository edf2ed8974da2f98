"""What a metric is: it states what it needs, learns from training data, and gives a number."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from leery._checks import Bounds
from leery.errors import InputError, LeeryError, brief
from leery.observation import Needs, Observation

__all__ = ["Direction", "FitContext", "Metric", "check_metric", "metric_refused"]

Direction = Literal["larger", "smaller", "both"]
"""Which values are suspicious."""

Part = Callable[[Iterable[str], object, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]

_RESERVED = ("name", "predicted", "score", "p_value", "adversarial", "error")
"""Columns of verdicts and of files of scores."""


@dataclass(frozen=True)
class FitContext:
    """What a metric that must be trained is given before the training data are observed.

    Attributes:
        batches: gives the training data anew at each call, as (images, labels) batches.
        seed: random seed.
        device: of the classifier.
        classes: the number of classes.
        bounds: of the pixels; None where they are unknown.
        pixels: the bounds, or where they are unknown the range of the first batch.
        progress: is told a description and the share that is done, in [0, 1].
        part: takes the names of the modules whose code decides about a training, everything else
            that determines it (as JSON-serialisable values), and the training itself; gives the
            trained tensors. A fit that is resumed has them without training again.
    """

    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    seed: int
    device: torch.device
    classes: int
    bounds: Bounds | None
    pixels: Bounds
    progress: Callable[[str, float], object]
    part: Part = lambda _modules, _facts, make: make()


class Metric(nn.Module):
    """A number for each input that tells adversarial inputs from others.

    Subclass it, set the attributes, and implement :meth:`forward`. A metric that learns from the
    training data also implements :meth:`update`, :meth:`merge` and :meth:`finish`. Whatever it
    learns belongs in buffers or submodules: they are what the detector file holds. Buffers that
    have no value before the fit are registered as None, and have one after it.

    Attributes:
        name: of the metric; unique in a detector.
        family: metrics of one family say much the same; combiners may treat them together.
        direction: "larger" if large values are suspicious, "smaller", or "both".
        needs: what :meth:`update` and :meth:`forward` read.
        by_class: True if what is usual depends on the class; combiners then compare a value with
            those of its predicted class. Not for a value that means the same in every class, such
            as a probability: the comparison would hide that a class is often doubtful.
        differentiable: True if gradients of :meth:`forward` reach the images; else :meth:`smooth`
            is a stand-in.
    """

    name: str
    family: str
    direction: Direction = "larger"
    needs: Needs = Needs()
    by_class: bool = False
    differentiable: bool = True

    def prepare(self, context: FitContext) -> None:
        """Train what must be trained, such as an auxiliary network; by default nothing."""

    def update(self, seen: Observation, labels: Tensor) -> None:
        """Learn from a part of the training data; by default nothing.

        Args:
            seen: the part.
            labels: int64 ``(N,)``, its true classes, on the same device.
        """

    def merge(self, other: Self) -> None:  # noqa: ARG002 - what subclasses read
        """Add what another metric of this kind learned from the part that follows.

        Parts merged in their order give one result, however they were divided.
        """
        if self.learns:
            message = (
                f"expected {type(self).__name__} to have merge(), because it has update(); "
                "implement it to fit in parts"
            )
            raise InputError(message)

    def finish(self) -> None:
        """Complete the fit after the last part; by default nothing is left to do."""

    def forward(self, seen: Observation) -> Tensor:
        """The metric of each image, float64 ``(N,)``, finite."""
        raise NotImplementedError

    def smooth(self, seen: Observation) -> Tensor:
        """A differentiable stand-in for :meth:`forward`; by default the metric itself."""
        found: Tensor = self(seen)
        return found

    def options(self) -> dict[str, Any]:
        """The arguments that make another such metric, in types that JSON has."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the tensors of ``state_dict()`` of a fitted metric.

        Raises:
            InputError: when tensors are missing or unknown, or a submodule has other shapes.
        """
        for owner, name, path in _undefined_buffers(self):
            if path not in state:
                message = f"expected the tensors of {self.name}, got none called {path}; fit again"
                raise InputError(message)
            owner._buffers[name] = state[path]  # noqa: SLF001 - how torch itself assigns
        try:
            self.load_state_dict(dict(state), strict=True, assign=True)
        except RuntimeError as error:
            message = f"expected the tensors of {self.name}, got {_one_line(error)}; save it again"
            raise InputError(message) from error
        return self

    def check_classes(self, classes: int) -> None:
        """Refuse a fitted state of a classifier with another number of classes."""

    @property
    def learns(self) -> bool:
        """Whether it reads the training data."""
        return type(self).update is not Metric.update

    @property
    def trains(self) -> bool:
        """Whether it has something to train first."""
        return type(self).prepare is not Metric.prepare


@contextmanager
def metric_refused(metric: Metric) -> Iterator[None]:
    """Whatever a metric raises becomes one error that names it.

    Raises:
        InputError: then.
    """
    try:
        yield
    except (LeeryError, torch.OutOfMemoryError, MemoryError):
        raise
    # A metric may be somebody's code, and raises whatever it likes.
    except Exception as error:
        message = (
            f"expected metric {metric.name!r} to be computed, got {brief(error)}; correct its code"
        )
        raise InputError(message) from error


def check_metric(metric: Metric) -> None:
    """Refuse a metric whose name, family or direction cannot be used.

    Raises:
        InputError: then.
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
    """Buffers without a value: their module, their name there, and their path."""
    return [
        (owner, name, f"{prefix}.{name}" if prefix else name)
        for prefix, owner in module.named_modules()
        for name, buffer in owner._buffers.items()  # noqa: SLF001 - None is not among buffers()
        if buffer is None and name not in owner._non_persistent_buffers_set  # noqa: SLF001
    ]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
