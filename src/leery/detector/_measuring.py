"""Metrics of images, computed from one run."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from leery.errors import InputError
from leery.metrics import Metric, metric_refused
from leery.observation import Observation
from leery.tuning import CLOSENESS_IMAGES, CLOSENESS_PIXELS, UNCERTAINTY_ELEMENTS

__all__ = ["measured"]


def measured(
    metrics: Sequence[Metric], observations: Iterable[Observation]
) -> Iterator[tuple[Observation, Tensor]]:
    """Compute every metric of the images of each observation.

    Batches are merged or split where that is faster; the order of the images is kept.

    Args:
        metrics: fitted metrics.
        observations: observations of batches of images.

    Yields:
        An observation without its passes, and its metrics, float64 ``(N, M)``.
    """
    drawing = [metric for metric in metrics if metric.needs.draws]
    others = [metric for metric in metrics if not metric.needs.draws]
    waiting: list[tuple[Observation, dict[str, Tensor]]] = []
    for seen in observations:
        waiting.append((seen.without_passes(), _of_passes(drawing, seen)))
        if _enough([part for part, _ in waiting]):
            yield _joined(metrics, others, waiting)
            waiting = []
    if waiting:
        yield _joined(metrics, others, waiting)


def _of_passes(metrics: Sequence[Metric], seen: Observation) -> dict[str, Tensor]:
    """The metrics that read passes, computed on chunks that fit into the processor's cache."""
    if not metrics:
        return {}
    parts = [part.doubled() for part in _near_parts(seen)]
    return {m.name: torch.cat([_column(m, part) for part in parts]) for m in metrics}


def _column(metric: Metric, seen: Observation) -> Tensor:
    """The metric of each image, float64 ``(N,)``.

    Raises:
        InputError: when the metric returns anything else.
    """
    with metric_refused(metric), torch.inference_mode(mode=False), torch.no_grad():
        found: object = metric(seen)
    given = isinstance(found, Tensor) and found.is_floating_point()
    if not isinstance(found, Tensor) or not given or found.shape != (len(seen),):
        got = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found)
        message = (
            f"expected metric {metric.name!r} to return float ({len(seen)},), got {got}; fix its "
            "forward"
        )
        raise InputError(message)
    return found.double()


def _near_parts(seen: Observation) -> Iterator[Observation]:
    elements = 0 if seen.pass_probs is None else seen.pass_probs[:, :1].numel()
    rows = len(seen)
    if elements and seen.logits.device.type == "cpu":
        rows = max(1, UNCERTAINTY_ELEMENTS // elements)
    for start in range(0, len(seen), rows):
        yield seen.rows(start, start + rows)


def _enough(parts: Sequence[Observation]) -> bool:
    """True if the waiting batches suffice: more would cost memory and save no time."""
    images = sum(map(len, parts))
    return images >= CLOSENESS_IMAGES or images * parts[0].images[0].numel() >= CLOSENESS_PIXELS


def _joined(
    metrics: Sequence[Metric],
    others: Sequence[Metric],
    waiting: Sequence[tuple[Observation, dict[str, Tensor]]],
) -> tuple[Observation, Tensor]:
    seen = Observation.joined([part for part, _ in waiting])
    columns = {metric.name: _column(metric, seen) for metric in others}
    for name in waiting[0][1]:
        columns[name] = torch.cat([found[name] for _, found in waiting])
    values = torch.stack([columns[metric.name] for metric in metrics], 1)
    _check_numbers(metrics, values)
    return seen, values


def _check_numbers(metrics: Sequence[Metric], values: Tensor) -> None:
    """Raise if a metric is NaN, for example because the classifier's output is.

    Raises:
        InputError: when a metric is NaN.
    """
    missing = values.isnan().any(0)
    if missing.any():
        name = next(m.name for m, nan in zip(metrics, missing.tolist(), strict=True) if nan)
        message = (
            f"expected no NaN from any metric, got NaN from {name!r}; check the weights of the "
            "classifier and the images"
        )
        raise InputError(message)
