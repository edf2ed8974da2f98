"""Observations of a classifier, computed in one run for all metrics.

A metric declares its :class:`Needs`. An :class:`Observer` runs the classifier once for the union of
all needs and passes the :class:`Observation` to each metric. The detector protocols on which
attacks and evaluation rely are also defined here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, Self, runtime_checkable
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from leery._checks import Bounds, clamp
from leery.errors import InputError
from leery.mc_dropout import MCDropout, Passes, Plan
from leery.models import (
    device_of,
    forward,
    isolated,
    last_hidden_layer,
    run_fast,
    submodules_of_images,
)
from leery.tuning import WHOLE_MODEL

__all__ = [
    "EACH",
    "HEAD",
    "FittableScorer",
    "Needs",
    "Observation",
    "Observer",
    "Scorer",
    "View",
    "Viewed",
]

HEAD = "<last hidden layer>"
"""Placeholder for the last hidden layer, from which the classifier's head computes the logits."""

EACH = "<each layer>"
"""Placeholder for every layer that :func:`leery.models.submodules_of_images` finds."""


@dataclass(frozen=True)
class View:
    """A transformation of the images, on whose result the classifier is also run.

    Attributes:
        name: name for error messages; with the seed, it determines the random draws.
        make: function of images ``(N, ...)``, a generator and the pixel range (the bounds or, if
            unknown, the range of the training images); returns images of the same shape. Its random
            draws must not depend on N, so that they are the same for every image.
    """

    name: str
    make: Callable[[Tensor, torch.Generator, Bounds], Tensor]

    def __deepcopy__(self, memo: object) -> Self:
        """The view itself, so that a copy of a metric finds what the original's needs name."""
        return self

    def images(
        self,
        images: Tensor,
        *,
        seed: int,
        bounds: Bounds | None,
        pixels: Bounds = (0.0, 1.0),
    ) -> Tensor:
        """Transform images and clip them to the bounds, if there are any."""
        sequence = np.random.SeedSequence([seed, crc32(self.name.encode())])
        state = int(sequence.generate_state(1, np.uint64)[0]) >> 1
        generator = torch.Generator().manual_seed(state)
        made = self.make(images, generator, bounds or pixels)
        return made if bounds is None else clamp(made, bounds)


@dataclass(frozen=True)
class Viewed:
    """Logits of the classifier for a view.

    Attributes:
        logits: float ``(N, classes)``, dropout off.
        source: ``(N, ...)``, the original images.
        make: function that transforms the images.
    """

    logits: Tensor
    source: Tensor
    make: Callable[[Tensor], Tensor]

    @property
    def images(self) -> Tensor:
        """The transformed images, ``(N, ...)``, recomputed at each access to save memory."""
        return self.make(self.source)


@dataclass(frozen=True)
class Needs:
    """Parts of an observation that a metric needs.

    Attributes:
        passes: True for the class probabilities of each Monte-Carlo dropout pass.
        layers: submodules whose outputs are needed, with dropout off; "input of " before a name
            selects its input; :data:`HEAD` and :data:`EACH` are resolved by the fit.
        pass_layers: submodules whose outputs in each pass are needed, named in the same way.
        views: transformations of the images.
        gradients: True if the metric runs the classifier itself with autograd on.
    """

    passes: bool = False
    layers: tuple[str, ...] = ()
    pass_layers: tuple[str, ...] = ()
    views: tuple[View, ...] = ()
    gradients: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        """Union of two needs."""
        return Needs(
            self.passes or other.passes,
            tuple(dict.fromkeys((*self.layers, *other.layers))),
            tuple(dict.fromkeys((*self.pass_layers, *other.pass_layers))),
            tuple(dict.fromkeys((*self.views, *other.views))),
            self.gradients or other.gradients,
        )

    @property
    def draws(self) -> bool:
        """True if dropout passes are needed."""
        return self.passes or bool(self.pass_layers)


class _ByName(dict[Any, Any]):
    """A mapping that raises, for a missing key, an error that says what to add to Needs."""

    def __init__(self, what: str, entries: Mapping[Any, Any]) -> None:
        super().__init__(entries)
        self._what = what

    def __missing__(self, key: object) -> object:
        name = key.name if isinstance(key, View) else key
        message = (
            f"expected a metric that declares what it reads, got one that reads {name!r} without "
            f"declaring it; add it to its Needs({self._what}=...)"
        )
        raise InputError(message)


@dataclass(frozen=True)
class Observation:
    """Results of one run over a batch of images, limited to what was needed.

    Attributes:
        images: ``(N, ...)``.
        logits: float ``(N, classes)``, dropout off.
        layers: layer outputs ``(N, ...)`` by the name used in :class:`Needs`.
        pass_layers: layer outputs in each pass, ``(passes, N, ...)``, by the name used in
            :class:`Needs`.
        views: results of the classifier for each view.
        each: names of the layers that :data:`EACH` stands for, in execution order.
        classifier: function that returns the logits ``(N, classes)`` of any images with dropout
            off; it is differentiable if autograd is on.
        pass_probs: float ``(passes, N, classes)``, or None; use :attr:`probs` to read it.
    """

    images: Tensor
    logits: Tensor
    classifier: Callable[[Tensor], Tensor]
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    pass_layers: Mapping[str, Tensor] = field(default_factory=dict)
    views: Mapping[View, Viewed] = field(default_factory=dict)
    each: tuple[str, ...] = ()
    pass_probs: Tensor | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.logits)

    @cached_property
    def predicted(self) -> Tensor:
        """The predicted class of each image with dropout off, int64 ``(N,)``."""
        return self.logits.argmax(1)

    @property
    def probs(self) -> Tensor:
        """Class probabilities of each dropout pass, float ``(passes, N, classes)``.

        Raises:
            InputError: when no metric declared that it needs passes.
        """
        if self.pass_probs is None:
            message = (
                "expected a metric that declares what it reads, got one that reads passes without "
                "declaring it; add Needs(passes=True)"
            )
            raise InputError(message)
        return self.pass_probs

    def rows(self, start: int, stop: int) -> Self:
        """The observation of images ``start`` to ``stop - 1``."""
        cut = slice(start, stop)
        return self.changed(lambda value, dim: value[cut] if dim == 0 else value[:, cut])

    def doubled(self) -> Self:
        """A copy with float64 probabilities, in which uncertainty metrics are computed."""
        probs = None if self.pass_probs is None else self.pass_probs.double()
        return type(self)(**{**vars_of(self), "pass_probs": probs})

    def without_passes(self) -> Self:
        """A copy without the results of single passes, which take most of the memory."""
        return type(self)(**{**vars_of(self), "pass_probs": None, "pass_layers": {}})

    def changed(self, change: Callable[[Tensor, int], Tensor]) -> Self:
        """A copy with each tensor replaced by ``change(tensor, batch_dimension)``."""
        probs = self.pass_probs
        return type(self)(
            images=change(self.images, 0),
            logits=change(self.logits, 0),
            classifier=self.classifier,
            layers=_changed(self.layers, change, 0),
            pass_layers=_changed(self.pass_layers, change, 1),
            views=_ByName(
                "views",
                {
                    view: Viewed(change(seen.logits, 0), change(seen.source, 0), seen.make)
                    for view, seen in self.views.items()
                },
            ),
            each=self.each,
            pass_probs=None if probs is None else change(probs, 1),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the observations of several batches."""
        if len(parts) == 1:
            return parts[0]
        tensors: list[list[Tensor]] = []
        for part in parts:
            own: list[Tensor] = []
            part.changed(lambda value, _dim, own=own: own.append(value) or value)  # type: ignore[misc]
            tensors.append(own)
        columns = iter(zip(*tensors, strict=True))
        return parts[0].changed(lambda _value, dim: torch.cat(list(next(columns)), dim))


def vars_of(seen: Observation) -> dict[str, Any]:
    """The fields of an observation, without its cached properties."""
    return {name: getattr(seen, name) for name in seen.__dataclass_fields__}


def _changed(
    values: Mapping[str, Tensor], change: Callable[[Tensor, int], Tensor], dim: int
) -> _ByName:
    what = "pass_layers" if dim else "layers"
    return _ByName(what, {name: change(value, dim) for name, value in values.items()})


class Observer:
    """Runs a classifier once for all declared needs.

    Args:
        model: returns logits ``(N, classes)``.
        needs: union of the needs of all metrics.
        head: layer that :data:`HEAD` stands for, chosen by the user or found by :meth:`find`; None
            if no metric reads it.
        each: layers that :data:`EACH` stands for, found by :meth:`find`.
        passes: the number of Monte-Carlo dropout passes.
        seed: random seed of the dropout masks.
        view_seed: random seed of views; by default ``seed``.
        fresh: True to draw new masks at each call.
        bounds: pixel bounds to which views are clipped; None for no clipping.
        pixels: range of the training images, which views use if there are no bounds.
        batch_size: maximum number of images that a thread processes at once.
    """

    def __init__(
        self,
        model: nn.Module,
        needs: Needs,
        *,
        head: str | None = None,
        each: Sequence[str] = (),
        passes: int = 50,
        seed: int = 0,
        view_seed: int | None = None,
        fresh: bool = False,
        bounds: Bounds | None = None,
        pixels: Bounds = (0.0, 1.0),
        batch_size: int = 1000,
    ) -> None:
        self.model = model
        self.needs = needs
        self.head = head
        self.each = tuple(each)
        self.bounds = bounds
        self.pixels = pixels
        self._view_seed = seed if view_seed is None else view_seed
        self._batch_size = batch_size
        self._settings = (passes, seed, "fresh" if fresh else "fixed")
        names = {HEAD: (head,) if head else (), EACH: self.each}
        self._layers = _resolved(needs.layers, names)
        self._pass_layers = _resolved(needs.pass_layers, names)
        self._sampler: MCDropout | None = None
        if needs.draws:
            self._sampler = MCDropout(
                model,
                *self._settings,  # type: ignore[arg-type]
                layers=self._layers,
                pass_layers=self._pass_layers,
                batch_size=batch_size,
            )

    @staticmethod
    def find(model: nn.Module, needs: Needs, images: Tensor, head: str | None) -> dict[str, Any]:
        """Find the layers of :data:`HEAD` and :data:`EACH`, as keyword arguments of an observer.

        Args:
            model: returns logits ``(N, classes)``.
            needs: needs of the metrics; only needed layers are searched for.
            images: ``(N, ...)``, of which the model is run on the first few.
            head: the last hidden layer as the user named it, or None.

        Raises:
            UnknownLayerError: when there is no such layer.
        """
        asked = {*needs.layers, *needs.pass_layers}
        if HEAD in asked and head is None:
            head = last_hidden_layer(model, images)
        each = submodules_of_images(model, images) if EACH in asked else ()
        return {"head": head, "each": each}

    def stream(self, images: Tensor) -> Iterator[Observation]:
        """The observation of images ``(N, ...)``, batch by batch, on the model's device.

        Raises:
            InputError: when the images do not fit.
        """
        if self._sampler is None:
            for batch in images.split(min(self._batch_size, WHOLE_MODEL)):
                yield self._plainly(batch.to(device_of(self.model)))
            return
        start = 0
        for seen in self._sampler.stream(images):
            batch = images[start : start + len(seen.logits)].to(seen.logits.device)
            start += len(batch)
            with torch.no_grad():
                found = self._observation(batch, seen.logits, seen.layers, self._views(batch), seen)
            yield found

    def _plainly(self, batch: Tensor) -> Observation:
        """The observation of a batch without passes."""
        with (
            torch.inference_mode(mode=False),
            torch.no_grad(),
            isolated(self.model, batch) as still,
        ):
            logits, layers = forward(still, batch, self._layers)
            return self._observation(batch, logits, layers, self._views(batch, still))

    def observe_with_gradient(self, images: Tensor) -> Observation:
        """The observation of one batch, with gradients to the images.

        Args:
            images: float ``(N, ...)``, on the model's device.

        Raises:
            InputError: when the images do not fit.
        """
        if self._sampler is not None:
            seen = self._sampler.observe_with_gradient(images)
            return self._observation(images, seen.logits, seen.layers, self._views(images), seen)
        with isolated(self.model, images) as still:
            logits, layers = forward(still, images, self._layers)
            return self._observation(images, logits, layers, self._views(images, still))

    def classes(self, images: Tensor) -> int:
        """The number of classes, from the logits of the first two images."""
        with torch.no_grad():
            return self._classify(images[:2]).shape[1]

    def explain_plan(self, images: Tensor) -> Plan:
        """How passes over such images are computed, found by a run on the first two.

        Raises:
            NoDropoutError, UnsupportedModelError, InputError: as :meth:`MCDropout.explain_plan`.
        """
        if self._sampler is not None:
            return self._sampler.explain_plan(images)
        reason = "no metric reads dropout passes"
        return Plan("once", reason, self._layers, (), repeated=0.0, once=1.0)

    def _observation(
        self,
        images: Tensor,
        logits: Tensor,
        layers: Mapping[str, Tensor],
        views: Mapping[View, Viewed],
        seen: Passes | None = None,
    ) -> Observation:
        pass_layers = {} if seen is None else seen.pass_layers
        return Observation(
            images=images,
            logits=logits,
            classifier=self._classify,
            layers=_ByName("layers", self._named(self.needs.layers, layers)),
            pass_layers=_ByName("pass_layers", self._named(self.needs.pass_layers, pass_layers)),
            views=_ByName("views", views),
            each=self.each,
            pass_probs=None if seen is None else seen.probs,
        )

    def _named(self, asked: Sequence[str], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Layer outputs by the names that metrics use."""
        plain = {name: value for name, value in found.items() if name in asked or EACH in asked}
        return plain | ({HEAD: found[self.head]} if HEAD in asked and self.head else {})

    def _views(self, images: Tensor, still: nn.Module | None = None) -> dict[View, Viewed]:
        """Every view that is needed of images; small batches of views are run as one.

        Args:
            images: ``(N, ...)``.
            still: the isolated model, if the caller has it.
        """
        makes = {
            view: partial(view.images, seed=self._view_seed, bounds=self.bounds, pixels=self.pixels)
            for view in self.needs.views
        }
        versions: Iterable[Tensor] = (make(images) for make in makes.values())
        few = bool(makes) and len(images) * len(makes) <= WHOLE_MODEL
        if few:
            versions = [*versions]
        if few and len({(version.shape, version.dtype) for version in versions}) == 1:
            logits = self._classify(torch.cat([*versions]), still).split(len(images))
        else:
            logits = tuple(self._classify(version, still) for version in versions)
        return {
            view: Viewed(own, images, make)
            for (view, make), own in zip(makes.items(), logits, strict=True)
        }

    def _classify(self, images: Tensor, still: nn.Module | None = None) -> Tensor:
        """The logits of images, dropout off."""
        device = device_of(self.model)
        with isolated(self.model, images) if still is None else nullcontext(still) as model:
            parts = [run_fast(model, part.to(device)) for part in images.split(WHOLE_MODEL)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _resolved(asked: Sequence[str], names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Layer names, with :data:`HEAD` and :data:`EACH` replaced by what they stand for."""
    return tuple(dict.fromkeys(name for layer in asked for name in names.get(layer, (layer,))))


@runtime_checkable
class Scorer(Protocol):
    """Interface of a detector for evaluation and attacks.

    Attributes:
        model: the classifier.
        differentiable: True if :meth:`differentiable_score` is exact, False if it uses surrogates.
    """

    model: nn.Module

    @property
    def differentiable(self) -> bool:
        """True if :meth:`differentiable_score` is exact, False if it uses surrogates."""

    def score(self, images: Tensor) -> np.ndarray:
        """The score of each image, float64 ``(N,)``; larger is more suspicious."""

    def differentiable_score(self, images: Tensor) -> Tensor:
        """The score of each image, float ``(N,)``, with gradients to the images."""


class FittableScorer(Scorer, Protocol):
    """Interface of a detector that can be fitted to clean images and, possibly, attacks.

    A class that needs attacks has an attribute ``learns_from_attacks`` that is true.
    """

    def fit(
        self,
        train: tuple[Tensor, Tensor],
        clean: tuple[Tensor, Tensor],
        attacks: Sequence[Callable[..., Tensor]] = (),
    ) -> Self:
        """Fit on labelled training images and on labelled clean images held out from them.

        Args:
            train: training images ``(N, ...)`` and their true classes.
            clean: other images and their true classes.
            attacks: functions as :class:`leery.attacks.Attack`, to be run on the clean images or on
                some of them; empty for detectors that do not learn from attacks.
        """
