"""What metrics ask of a classifier, and the one run over the images that answers all of them.

A metric states its :class:`Needs`. An :class:`Observer` runs the classifier once for the union of
all needs and hands each metric the :class:`Observation`. The protocols of detectors stand here too,
because attacks and evaluation ask no more of a detector than they say.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    guest,
    last_hidden_layer,
    run_model,
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
"""Stands for the layer whose values the classifier's head turns into logits."""

EACH = "<each layer>"
"""Stands for every layer that :func:`leery.models.submodules_of_images` finds."""


@dataclass(frozen=True)
class View:
    """Another version of the images, on which the classifier is run too.

    Attributes:
        name: in error messages; together with the seed it decides what is drawn.
        make: takes images ``(N, ...)``, a generator, and the lowest and highest pixel value (the
            bounds, or where they are unknown the range of the training images); returns images of
            the same shape. What it draws must not depend on N, so that every image gets the same.
    """

    name: str
    make: Callable[[Tensor, torch.Generator, Bounds], Tensor]

    def images(
        self,
        images: Tensor,
        *,
        seed: int,
        bounds: Bounds | None,
        pixels: Bounds = (0.0, 1.0),
    ) -> Tensor:
        """The version of these images, cut to the bounds where there are any."""
        sequence = np.random.SeedSequence([seed, crc32(self.name.encode())])
        state = int(sequence.generate_state(1, np.uint64)[0]) >> 1
        generator = torch.Generator().manual_seed(state)
        made = self.make(images, generator, bounds or pixels)
        return made if bounds is None else clamp(made, bounds)


@dataclass(frozen=True)
class Viewed:
    """What the classifier gives for a view.

    Attributes:
        logits: float ``(N, classes)``, dropout off.
        source: ``(N, ...)``, the images of which the view is a version.
        make: makes the version of such images.
    """

    logits: Tensor
    source: Tensor
    make: Callable[[Tensor], Tensor]

    @property
    def images(self) -> Tensor:
        """The version, ``(N, ...)``, made anew: many views would not fit into memory together."""
        return self.make(self.source)


@dataclass(frozen=True)
class Needs:
    """What a metric must see of a batch of images.

    Attributes:
        passes: class probabilities of each Monte-Carlo dropout pass.
        layers: names of submodules, whose outputs are meant, with dropout off; "input of " and a
            name for an input; :data:`HEAD` or :data:`EACH`, which the fit resolves.
        pass_layers: the same, for their values in each pass.
        views: other versions of the images.
        gradients: True if the metric runs the classifier itself with autograd on.
    """

    passes: bool = False
    layers: tuple[str, ...] = ()
    pass_layers: tuple[str, ...] = ()
    views: tuple[View, ...] = ()
    gradients: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        """The needs of both."""
        return Needs(
            self.passes or other.passes,
            tuple(dict.fromkeys((*self.layers, *other.layers))),
            tuple(dict.fromkeys((*self.pass_layers, *other.pass_layers))),
            tuple(dict.fromkeys((*self.views, *other.views))),
            self.gradients or other.gradients,
        )

    @property
    def draws(self) -> bool:
        """Whether dropout passes are needed at all."""
        return self.passes or bool(self.pass_layers)


class _ByName(dict[Any, Any]):
    """A mapping whose missing entries are an error that says what to add to the needs."""

    def __init__(self, what: str, entries: Mapping[Any, Any]) -> None:
        super().__init__(entries)
        self._what = what

    def __missing__(self, key: object) -> object:
        name = key.name if isinstance(key, View) else key
        message = (
            f"expected a metric that states what it reads, got one that reads {name!r} without "
            f"stating it; add it to its Needs({self._what}=...)"
        )
        raise InputError(message)


@dataclass(frozen=True)
class Observation:
    """What one run over a batch of images yields: only what was needed.

    Attributes:
        images: ``(N, ...)``.
        logits: float ``(N, classes)``, dropout off.
        layers: the values ``(N, ...)`` of layers by the name that was asked for.
        pass_layers: the values ``(passes, N, ...)`` of layers in each pass, by the name
            that was asked for.
        views: what the classifier gives for each view.
        each: the names of the layers that :data:`EACH` stands for, in the order of running.
        classifier: gives the logits ``(N, classes)`` of other images, dropout off; gradients reach
            them where autograd is on.
        pass_probs: float ``(passes, N, classes)``, or None; read it as :attr:`probs`.
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
        """The class of each image with dropout off, int64 ``(N,)``."""
        return self.logits.argmax(1)

    @property
    def probs(self) -> Tensor:
        """Class probabilities of each dropout pass, float ``(passes, N, classes)``.

        Raises:
            InputError: when no metric stated that it needs passes.
        """
        if self.pass_probs is None:
            message = (
                "expected a metric that states what it reads, got one that reads passes without "
                "stating it; add Needs(passes=True)"
            )
            raise InputError(message)
        return self.pass_probs

    def rows(self, start: int, stop: int) -> Self:
        """The observation of some of the images."""
        cut = slice(start, stop)
        return self.changed(lambda value, dim: value[cut] if dim == 0 else value[:, cut])

    def doubled(self) -> Self:
        """The same with float64 probabilities, in which metrics of uncertainty compute."""
        probs = None if self.pass_probs is None else self.pass_probs.double()
        return type(self)(**{**vars_of(self), "pass_probs": probs})

    def without_passes(self) -> Self:
        """The same without what each pass gave, which takes most of the memory."""
        return type(self)(**{**vars_of(self), "pass_probs": None, "pass_layers": {}})

    def changed(self, change: Callable[[Tensor, int], Tensor]) -> Self:
        """The observation with each tensor replaced by ``change(tensor, image_dimension)``."""
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
        """Batches one after the other."""
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
    """The fields of an observation, without what it caches."""
    return {name: getattr(seen, name) for name in seen.__dataclass_fields__}


def _changed(
    values: Mapping[str, Tensor], change: Callable[[Tensor, int], Tensor], dim: int
) -> _ByName:
    what = "pass_layers" if dim else "layers"
    return _ByName(what, {name: change(value, dim) for name, value in values.items()})


class Observer:
    """Runs a classifier once for everything that was stated as needed.

    Args:
        model: returns logits ``(N, classes)``.
        needs: of all metrics together.
        head: the layer that :data:`HEAD` stands for, None if nothing reads it; the user's choice or
            found on example images by :meth:`find`.
        each: the layers that :data:`EACH` stands for; also found by :meth:`find`.
        passes: the number of Monte-Carlo dropout passes.
        seed: of the dropout masks.
        view_seed: of what views draw; by default that of the masks.
        fresh: True if each call draws masks of its own.
        bounds: of the pixels, to which views are cut; None where they have none.
        pixels: the range of the training images, which views use where there are no bounds.
        batch_size: the largest number of images that a thread works on at once.
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
        """What :data:`HEAD` and :data:`EACH` stand for, as keyword arguments of an observer.

        Args:
            model: returns logits ``(N, classes)``.
            needs: only what is needed is looked for.
            images: ``(N, ...)``; the first two are shown to the model.
            head: as the user named it, or None.

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
                found = self._observation(batch, seen.logits, seen.layers, seen)
            yield found

    def _plainly(self, batch: Tensor) -> Observation:
        """The observation of a batch without passes."""
        with torch.inference_mode(mode=False), torch.no_grad(), guest(self.model, batch) as still:
            logits, layers = forward(still, batch, self._layers)
            return self._observation(batch, logits, layers)

    def observe_with_gradient(self, images: Tensor) -> Observation:
        """The observation of one batch, through which gradients reach the images.

        Args:
            images: float ``(N, ...)``, on the model's device.

        Raises:
            InputError: when the images do not fit.
        """
        if self._sampler is not None:
            seen = self._sampler.observe_with_gradient(images)
            return self._observation(images, seen.logits, seen.layers, seen)
        with guest(self.model, images) as still:
            logits, layers = forward(still, images, self._layers)
        return self._observation(images, logits, layers)

    def classes(self, images: Tensor) -> int:
        """The number of classes, as the logits of the first two images show it."""
        with torch.no_grad():
            return self._classify(images[:2]).shape[1]

    def explain_plan(self, images: Tensor) -> Plan:
        """How images of this kind are run; the first two are shown to the model.

        Raises:
            NoDropoutError, UnsupportedModelError, InputError: as :class:`MCDropout` says.
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
        seen: Passes | None = None,
    ) -> Observation:
        pass_layers = {} if seen is None else seen.pass_layers
        return Observation(
            images=images,
            logits=logits,
            classifier=self._classify,
            layers=_ByName("layers", self._named(self.needs.layers, layers)),
            pass_layers=_ByName("pass_layers", self._named(self.needs.pass_layers, pass_layers)),
            views=_ByName("views", {view: self._viewed(view, images) for view in self.needs.views}),
            each=self.each,
            pass_probs=None if seen is None else seen.probs,
        )

    def _named(self, asked: Sequence[str], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values under the names that metrics use."""
        plain = {name: value for name, value in found.items() if name in asked or EACH in asked}
        return plain | ({HEAD: found[self.head]} if HEAD in asked and self.head else {})

    def _viewed(self, view: View, images: Tensor) -> Viewed:
        make = partial(view.images, seed=self._view_seed, bounds=self.bounds, pixels=self.pixels)
        return Viewed(self._classify(make(images)), images, make)

    def _classify(self, images: Tensor) -> Tensor:
        """The logits of images, dropout off."""
        device = device_of(self.model)
        with guest(self.model, images) as still:
            parts = [run_model(still, part.to(device)) for part in images.split(WHOLE_MODEL)]
        return torch.cat(parts)


def _resolved(asked: Sequence[str], names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Layer names, with :data:`HEAD` and :data:`EACH` replaced by what they stand for."""
    return tuple(dict.fromkeys(name for layer in asked for name in names.get(layer, (layer,))))


@runtime_checkable
class Scorer(Protocol):
    """Any detector, as evaluation and attackers see it.

    Attributes:
        model: the classifier that is defended.
        differentiable: True if :meth:`differentiable_score` is exact, False if it uses stand-ins.
    """

    model: nn.Module

    @property
    def differentiable(self) -> bool:
        """Whether the differentiable score is exact."""

    def score(self, images: Tensor) -> np.ndarray:
        """float64 ``(N,)``; larger is more adversarial."""

    def differentiable_score(self, images: Tensor) -> Tensor:
        """Float ``(N,)``, through which gradients reach the images."""


class FittableScorer(Scorer, Protocol):
    """A detector that learns from clean images, and some also from attacks."""

    def fit(
        self,
        train: tuple[Tensor, Tensor],
        clean: tuple[Tensor, Tensor],
        attacks: Sequence[Callable[..., Tensor]] = (),
    ) -> Self:
        """Learn from labelled training images and labelled clean ones held out of them."""
