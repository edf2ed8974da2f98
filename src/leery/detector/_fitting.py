"""Fitting of the metrics in one run over the training data."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from leery._checks import Bounds, check_bounds, check_labels
from leery._progress import progress_bars
from leery.detector._settings import Settings
from leery.detector._state import Fitted
from leery.errors import InputError, NoDropoutError, UnsupportedModelError
from leery.inputs import Images, InputSpec, Moments, bounds_seen, labelled_batches
from leery.metrics import FitContext, Metric, make_metrics, metric_refused, recommended_for
from leery.models import (
    device_of,
    fingerprint,
    grid_of,
    has_linear_head,
    image_hashes,
    isolated,
    run_model,
)
from leery.observation import Needs, Observation, Observer
from leery.training import FitParts

__all__ = ["fit", "needs_of", "recommended_metrics"]


def needs_of(metrics: Sequence[Metric]) -> Needs:
    """Union of the needs of the metrics."""
    return reduce(lambda needs, metric: needs | metric.needs, metrics, Needs())


def fit(
    model: nn.Module,
    settings: Settings,
    images: Images,
    labels: Tensor | None,
    parts: FitParts | None = None,
) -> tuple[Settings, Fitted]:
    """Fit copies of the metrics to training data.

    Args:
        model: the classifier.
        settings: settings of the detector.
        images: labelled images in a form that :func:`leery.inputs.labelled_batches` accepts.
        labels: the true classes, for a tensor of images.
        parts: storage of trained parts; None for no storage.

    Returns:
        The settings with the chosen metrics, and the fitted state.

    Raises:
        InputError: when images or labels do not fit, or a class has no image.
        UnsupportedModelError: when the classifier does not return logits.
        UnknownLayerError, NoDropoutError: when a metric needs what the classifier lacks.
    """
    run = _Run(given=settings.bounds)
    start: _Start | None = None
    for batch, truth in _labelled(images, labels):
        if start is None:
            start = _started(model, settings, run, batch)
            again = partial(_checked, run, images, labels)
            _prepare(start.metrics, settings, model, run, again, images, parts)
        check_labels(truth, len(batch), run.classes)
        run.begin(batch)
        first = 0
        for seen in start.observer.stream(batch):
            own = truth[first : first + len(seen)].to(seen.logits.device)
            first += len(seen)
            run.see(seen, own)
            for metric in start.metrics:
                with metric_refused(metric), torch.inference_mode(mode=False), torch.no_grad():
                    metric.update(seen, own)
    assert start is not None
    run.check()
    for metric in start.metrics:
        with metric_refused(metric):
            metric.finish()
    assert run.example is not None
    fitted = Fitted(
        metrics=start.metrics,
        **start.layers,
        inputs=InputSpec.of(run.example, run.moments, settings.bounds),
        classes=run.classes,
        fingerprint=fingerprint(model),
        seen=run.seen(),
        grid=run.grid,
        accuracy=run.right / run.count,
    )
    return start.settings, fitted


@dataclass(frozen=True)
class _Start:
    """State that is determined by the first batch."""

    settings: Settings
    metrics: tuple[Metric, ...]
    layers: dict[str, Any]
    observer: Observer


def _started(model: nn.Module, settings: Settings, run: "_Run", batch: Tensor) -> _Start:
    """Check the classifier's outputs, then set up the metrics, layers and observer."""
    run.plain = settings.trust_outputs or has_linear_head(model, batch)
    if not run.plain:
        # A model that returns probabilities must get that error, not one about a missing layer.
        run.outputs.check_some(model, batch)
    first = Moments()
    first.add(batch)
    run.bounds = settings.bounds or bounds_seen(batch, first)
    run.pixels = run.bounds or (first.low, first.high)
    settings = _for_inputs(settings, model, batch)
    metrics = copy.deepcopy(settings.metrics)
    layers = Observer.find(model, needs_of(metrics), batch, settings.feature_layer)
    observer = _observer_of_the_fit(model, settings, metrics, layers, batch, run)
    run.classes = observer.classes(batch)
    return _Start(settings, metrics, layers, observer)


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


def _checked(run: "_Run", images: Images, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the training data; raises if images or labels do not fit."""
    for batch, truth in _labelled(images, labels):
        check_labels(truth, len(batch), run.classes)
        run.begin(batch)
        yield batch, truth


def _observer_of_the_fit(
    model: nn.Module,
    settings: Settings,
    metrics: Sequence[Metric],
    layers: dict[str, Any],
    batch: Tensor,
    run: "_Run",
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
            bounds=run.bounds,
            pixels=run.pixels,
            batch_size=settings.batch_size,
        )
        for needs in (every, learning)
    ]
    made[0].explain_plan(batch)
    return made[1]


def _prepare(
    metrics: Sequence[Metric],
    settings: Settings,
    model: nn.Module,
    run: "_Run",
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    images: Images,
    parts: FitParts | None,
) -> None:
    """Train the metrics that need it; the data are then read more than once."""
    training = [metric for metric in metrics if metric.trains]
    if training and isinstance(images, Iterator):
        message = (
            f"expected training data that can be read twice, which {training[0].name} needs, got "
            "an iterator; pass a tensor or a DataLoader"
        )
        raise InputError(message)
    if not training:
        return
    holding = nullcontext() if parts is None or parts.held else parts
    with holding, progress_bars() as bars:
        task = bars.add_task("training", total=100)
        context = FitContext(
            model=model,
            batches=batches,
            seed=settings.seed,
            device=device_of(model),
            batch_size=settings.batch_size,
            classes=run.classes,
            bounds=run.bounds,
            pixels=run.pixels,
            progress=lambda text, share: bars.update(
                task, description=f"{text}, %", completed=round(100 * share)
            ),
            **({} if parts is None else {"part": parts}),
        )
        for metric in training:
            with metric_refused(metric):
                metric.prepare(context)


@dataclass
class _Run:
    """Statistics that the fit gathers besides the metrics."""

    plain: bool = False
    classes: int = 0
    count: int = 0
    right: int = 0
    moments: Moments = field(default_factory=Moments)
    hashes: list[Tensor] = field(default_factory=list)
    labels: set[int] = field(default_factory=set)
    example: Tensor | None = None
    grid: float = 1.0
    bounds: Bounds | None = None
    pixels: Bounds = (0.0, 1.0)
    given: Bounds | None = None
    outputs: "_Outputs" = field(default_factory=lambda: _Outputs())  # noqa: PLW0108 - defined below

    def begin(self, batch: Tensor) -> None:
        """Raise if a batch differs from the first in shape or type."""
        if self.example is None:
            self.example, self.grid = batch[:1], grid_of(batch)
        elif batch.shape[1:] != self.example.shape[1:] or batch.dtype != self.example.dtype:
            message = (
                f"expected training images of one shape, got {tuple(self.example.shape[1:])} of "
                f"{self.example.dtype} and {tuple(batch.shape[1:])} of {batch.dtype}; convert them"
            )
            raise InputError(message)

    def see(self, seen: Observation, labels: Tensor) -> None:
        if self.given:
            check_bounds(seen.images, self.given)
        self.moments.add(seen.images)
        self.hashes.append(image_hashes(seen.images, self.grid))
        self.count += len(seen)
        self.right += int((seen.predicted == labels).sum())
        self.labels.update(labels.unique().tolist())
        self.outputs.see(seen.logits)

    def seen(self) -> Tensor:
        """Distinct hashes of the images; empty if the data contain many duplicates."""
        hashes = torch.cat(self.hashes)
        distinct: Tensor = hashes.unique()
        return distinct if len(distinct) > 0.9 * len(hashes) else distinct[:0]

    def check(self) -> None:
        """Raise if the outputs are not logits or a class has no image."""
        if not self.plain:
            self.outputs.check()
        missing = sorted(set(range(self.classes)) - self.labels)
        if missing:
            message = (
                f"expected training images of all {self.classes} classes, got none of {missing}; "
                "add some"
            )
            raise InputError(message)


@dataclass
class _Outputs:
    """Range and row sums of the classifier's outputs over all training images."""

    low: float = float("inf")
    high: float = -float("inf")
    sums: tuple[float, float] = (float("inf"), -float("inf"))

    def see(self, logits: Tensor) -> None:
        self.low = min(self.low, float(logits.min()))
        self.high = max(self.high, float(logits.max()))
        sums = logits.double().sum(1)
        self.sums = min(self.sums[0], float(sums.min())), max(self.sums[1], float(sums.max()))

    def check_some(self, model: nn.Module, batch: Tensor) -> None:
        """Run the check on a few images before the fit.

        Raises:
            UnsupportedModelError: as :meth:`check`.
        """
        first = _Outputs()
        with isolated(model, batch) as still, torch.no_grad():
            first.see(run_model(still, batch[:16].to(device_of(model))))
        first.check()

    def check(self) -> None:
        """Raise if the outputs are probabilities, percentages or sigmoids.

        Raises:
            UnsupportedModelError: when the outputs are not logits.
        """
        total, spread = self.sums[1], self.sums[1] - self.sums[0]
        if self.low >= 0 and spread <= 1e-3 * total and total > 0:
            what = "probabilities" if abs(total - 1) < 1e-2 else f"rows with sum {total:g}"  # noqa: PLR2004
            advice = "remove its softmax"
        elif self.low >= 0 and self.high <= 1:
            what, advice = "only elements in [0, 1], as a sigmoid does", "remove its sigmoid"
        else:
            return
        message = (
            f"expected a model that returns logits, got one that returns {what}; {advice}, or pass "
            "trust_outputs=True (--trust-outputs) if they are logits"
        )
        raise UnsupportedModelError(message)
