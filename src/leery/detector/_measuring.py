"""Metrics of images, collected batch by batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leery.detector._registry import UNCERTAINTY, Closeness
from leery.detector._table import MetricTable
from leery.mc_dropout import Observation

__all__ = ["Measuring"]

CLOSE_AT_ONCE = 2048
"""Images whose closeness is measured together: some hundreds a class make fast matrix products."""

NEAR = 2**18
"""Probabilities whose uncertainty is measured together on a processor: in float64 they stay in its
cache (2 MiB) from one metric to the next."""


class Measuring:
    """Turns observations into a table of metrics.

    Args:
        names: of the metrics, in the order of the table.
        closeness: the fitted metrics of closeness by name.
    """

    def __init__(self, names: Sequence[str], closeness: Mapping[str, Closeness]) -> None:
        self._closeness = closeness
        self._columns: dict[str, list[Tensor]] = {name: [] for name in names}
        self._predicted: list[Tensor] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, seen: Observation) -> None:
        """Measure a batch; closeness when enough have come together."""
        classes = seen.logits.argmax(1)
        self._predicted.append(classes)
        for part in _near_parts(seen.probs):
            probs = part.double()
            for name in self._columns.keys() & UNCERTAINTY.keys():
                self._columns[name].append(UNCERTAINTY[name](probs))
        if self._closeness:
            assert seen.features is not None
            self._waiting.append((seen.features, classes))
        if sum(len(classes) for _, classes in self._waiting) >= CLOSE_AT_ONCE:
            self._measure_closeness()

    def table(self) -> MetricTable:
        """The metrics of all images that were added, in their order."""
        if self._waiting:
            self._measure_closeness()
        columns = [torch.cat(parts).cpu() for parts in self._columns.values()]
        predicted = torch.cat(self._predicted).cpu().numpy()
        return MetricTable(tuple(self._columns), torch.stack(columns, dim=1).numpy(), predicted)

    def _measure_closeness(self) -> None:
        features, classes = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        for name, metric in self._closeness.items():
            self._columns[name].append(metric.score(features, classes))
        self._waiting.clear()


def _near_parts(probs: Tensor) -> Sequence[Tensor]:
    """Probabilities ``(passes, N, classes)`` of some images at a time; on a GPU of all at once."""
    passes, count, classes = probs.shape
    near = probs.device.type == "cpu"
    rows = max(1, NEAR // (passes * classes)) if near else count
    parts: Sequence[Tensor] = probs.split(rows, dim=1)
    return parts
