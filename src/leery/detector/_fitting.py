"""Fitting of the metrics in one run over the training data."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from leery._checks import Bounds, check_bounds, check_labels
from leery._progress import progress_bars
from leery.detector._learned import Learned, OutputRange
from leery.detector._settings import Settings
from leery.detector._state import Fitted
from leery.errors import InputError, NoDropoutError
from leery.inputs import Images, InputSpec, Moments, bounds_seen, labelled_batches, rows_at_once
from leery.metrics import FitContext, Metric, make_metrics, metric_refused, recommended_for
from leery.models import (
    device_of,
    fingerprint,
    grid_of,
    has_linear_head,
    isolated,
    run_model,
)
from leery.observation import Needs, Observer
from leery.training import FitParts

__all__ = ["Start", "fit", "needs_of", "recommended_metrics", "started"]


def needs_of(metrics: Sequence[Metric]) -> Needs:
    """Union of the needs of the metrics."""
    return reduce(lambda needs, metric: needs | metric.needs, metrics, Needs())


@dataclass(frozen=True)
class Start:
    """What the first batch of the training data determines.

    Attributes:
        model: the classifier.
        settings: settings of the detector, with the chosen metrics.
        metrics: unfitted copies of the metrics.
        layers: layers of the classifier that the metrics read.
        observer: observer for the metrics that learn.
        plain: True if the classifier's outputs are known to be logits.
        classes: the number of classes.
        example: one training image ``(1, ...)``.
        grid: step to which pixels are rounded before they are hashed.
        bounds: pixel bounds, given or as the first batch suggests; None if unknown.
        pixels: the bounds or, if they are unknown, the range of the first batch.
    """

    model: nn.Module
    settings: Settings
    metrics: tuple[Metric, ...]
    layers: dict[str, Any]
    observer: Observer
    plain: bool
    classes: int
    example: Tensor
    grid: float
    bounds: Bounds | None
    pixels: Bounds

    @property
    def learning(self) -> list[Metric]:
        """The metrics that learn from the training data."""
        return [metric for metric in self.metrics if metric.learns]

    def train(
        self,
        batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
        images: Images,
        parts: FitParts | None,
    ) -> None:
        """Train the metrics that need it; the data are then read more than once."""
        training = [metric for metric in self.metrics if metric.trains]
        if training and isinstance(images, Iterator):
            message = (
                f"expected training data that can be read twice, which {training[0].name} needs, "
                "got an iterator; pass a tensor or a DataLoader"
            )
            raise InputError(message)
        if not training:
            return
        holding = nullcontext() if parts is None or parts.held else parts
        with holding, progress_bars() as bars:
            task = bars.add_task("training", total=100)
            context = FitContext(
                model=self.model,
                batches=lambda: self._checked(batches()),
                seed=self.settings.seed,
                device=device_of(self.model),
                batch_size=self.settings.batch_size,
                classes=self.classes,
                bounds=self.bounds,
                pixels=self.pixels,
                progress=lambda text, share: bars.update(
                    task, description=f"{text}, %", completed=round(100 * share)
                ),
                **({} if parts is None else {"part": parts}),
            )
            for metric in training:
                with metric_refused(metric):
                    metric.prepare(context)

    def learn(self, images: Tensor, labels: Tensor) -> Learned:
        """Learn from consecutive images.

        Args:
            images: ``(N, ...)``.
            labels: int64 ``(N,)``, their true classes.

        Raises:
            InputError: when images or labels do not fit.
        """
        self._check(images, labels)
        learned, first = Learned.nothing(self.learning), 0
        for seen in self.observer.stream(images):
            own = labels[first : first + len(seen)].to(seen.logits.device)
            first += len(seen)
            if self.settings.bounds:
                check_bounds(seen.images, self.settings.bounds)
            learned.see(seen, own, self.grid)
            for metric in learned.metrics:
                with metric_refused(metric), torch.inference_mode(mode=False), torch.no_grad():
                    metric.update(seen, own)
        return learned

    def finish(self, learned: Learned) -> Fitted:
        """Complete the fit with what was learned from all training data.

        Raises:
            UnsupportedModelError: when the classifier does not return logits.
            InputError: when a class has no image.
        """
        learned.check(self.classes, plain=self.plain)
        taught = {metric.name: metric for metric in learned.metrics}
        metrics = tuple(taught.get(metric.name, metric) for metric in self.metrics)
        for metric in metrics:
            with metric_refused(metric):
                metric.finish()
        return Fitted(
            metrics=metrics,
            **self.layers,
            inputs=InputSpec.of(self.example, learned.moments, self.settings.bounds),
            classes=self.classes,
            fingerprint=fingerprint(self.model),
            seen=learned.seen(),
            grid=self.grid,
            accuracy=learned.right / learned.count,
        )

    def _checked(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the training data; raises if images or labels do not fit."""
        for images, labels in batches:
            self._check(images, labels)
            yield images, labels

    def _check(self, images: Tensor, labels: Tensor) -> None:
        """Raise if images differ from the first ones in shape or type, or labels do not fit."""
        check_labels(labels, len(images), self.classes)
        known = self.example
        if images.shape[1:] != known.shape[1:] or images.dtype != known.dtype:
            message = (
                f"expected training images of one shape, got {tuple(known.shape[1:])} of "
                f"{known.dtype} and {tuple(images.shape[1:])} of {images.dtype}; convert them"
            )
            raise InputError(message)


def fit(
    model: nn.Module,
    settings: Settings,
    images: Images,
    labels: Tensor | None,
    parts: FitParts | None = None,
) -> tuple[Start, Learned]:
    """Teach copies of the metrics with training data.

    Args:
        model: the classifier.
        settings: settings of the detector.
        images: labelled images in a form that :func:`leery.inputs.labelled_batches` accepts.
        labels: the true classes, for a tensor of images.
        parts: storage of trained parts; None for no storage.

    Returns:
        What the first batch determined, and what was learned from all.

    Raises:
        InputError: when images or labels do not fit.
        UnsupportedModelError: when the classifier does not return logits.
        UnknownLayerError, NoDropoutError: when a metric needs what the classifier lacks.
    """
    start: Start | None = None
    total: Learned | None = None
    for batch, truth in _labelled(images, labels):
        if start is None:
            start = started(model, settings, batch)
            start.train(lambda: _labelled(images, labels), images, parts)
            size = rows_at_once(batch.shape[1:])
        for rows, own in zip(batch.split(size), truth.split(size), strict=True):
            part = start.learn(rows, own)
            if total is None:
                total = part
            else:
                total.merge(part)
    assert start is not None
    assert total is not None
    return start, total


def started(model: nn.Module, settings: Settings, batch: Tensor) -> Start:
    """Check the classifier's outputs, then set up the metrics, layers and observer.

    Args:
        model: the classifier.
        settings: settings of the detector.
        batch: the first batch of the training data.

    Raises:
        UnsupportedModelError: when the classifier does not return logits.
        UnknownLayerError, NoDropoutError: when a metric needs what the classifier lacks.
    """
    plain = settings.trust_outputs or has_linear_head(model, batch)
    if not plain:
        # A model that returns probabilities must get that error, not one about a missing layer.
        _check_outputs(model, batch)
    first = Moments()
    first.add(batch)
    bounds = settings.bounds or bounds_seen(batch, first)
    pixels = bounds or (first.low, first.high)
    settings = _for_inputs(settings, model, batch)
    metrics = copy.deepcopy(settings.metrics)
    layers = Observer.find(model, needs_of(metrics), batch, settings.feature_layer)
    observer = _observer_of_the_fit(model, settings, metrics, layers, batch, bounds, pixels)
    return Start(
        model=model,
        settings=settings,
        metrics=metrics,
        layers=layers,
        observer=observer,
        plain=plain,
        classes=observer.classes(batch),
        example=batch[:1],
        grid=grid_of(batch),
        bounds=bounds,
        pixels=pixels,
    )


def _check_outputs(model: nn.Module, batch: Tensor) -> None:
    """Raise if the outputs for a few images are not logits.

    Raises:
        UnsupportedModelError: when they are not.
    """
    first = OutputRange()
    with isolated(model, batch) as still, torch.no_grad():
        first.see(run_model(still, batch[:16].to(device_of(model))))
    first.check()


def _for_inputs(settings: Settings, model: nn.Module, batch: Tensor) -> Settings:
    """The settings, with the metrics recommended for these inputs if the user named none."""
    if not settings.recommended:
        return settings
    names, left_out = recommended_metrics(model, batch, settings.passes)
    return replace(settings, metrics=make_metrics(names, settings.references), left_out=left_out)


def recommended_metrics(
    model: nn.Module, images: Tensor, passes: int = 50
) -> tuple[tuple[str, ...], str | None]:
    """Metrics that a detector uses by default for a classifier and its inputs.

    Args:
        model: the classifier.
        images: a batch of the training data.
        passes: the number of Monte-Carlo dropout passes.

    Returns:
        The names, and a sentence on the metrics that were left out, or None.
    """
    names, left_out = recommended_for(images)
    drawing = [metric for metric in make_metrics(names) if metric.needs.draws]
    if drawing:
        try:
            Observer(model, needs_of(drawing), passes=passes).explain_plan(images)
        except NoDropoutError:
            uncertain = {metric.name for metric in drawing}
            names = tuple(name for name in names if name not in uncertain)
            left_out = (
                "The uncertainty metrics were left out because the classifier has no dropout; "
                "leery.mc_dropout.insert_dropout (--insert-dropout LAYER:P) adds it."
            )
    return names, left_out


def _labelled(images: Images, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    for batch, truth in labelled_batches(images, labels):
        if truth is None:
            message = (
                "expected the labels of the training images, got None; use fit(images, labels) or "
                "batches of both"
            )
            raise InputError(message)
        yield batch, truth


def _observer_of_the_fit(
    model: nn.Module,
    settings: Settings,
    metrics: Sequence[Metric],
    layers: dict[str, Any],
    batch: Tensor,
    bounds: Bounds | None,
    pixels: Bounds,
) -> Observer:
    """Observer for the metrics that learn; a plan for all metrics is made first, to fail early."""
    every, learning = needs_of(metrics), needs_of([m for m in metrics if m.learns])
    made = [
        Observer(
            model,
            needs,
            **layers,
            passes=settings.passes,
            seed=settings.seed,
            bounds=bounds,
            pixels=pixels,
            batch_size=settings.batch_size,
        )
        for needs in (every, learning)
    ]
    made[0].explain_plan(batch)
    return made[1]
