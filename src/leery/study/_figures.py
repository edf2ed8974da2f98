"""The figures of the study, drawn from its tables."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from leery.study._config import METRIC_SETS, Condition, StudyConfig

__all__ = ["roc_figure"]

# Okabe and Ito's palette, which the colour-blind can tell apart; groups are drawn thicker.
_STYLES: Mapping[str, tuple[str, str, float]] = {
    "variance": ("#56B4E9", "--", 1.2),
    "predictive_entropy": ("#009E73", "--", 1.2),
    "mutual_information": ("#CC79A7", "--", 1.2),
    "confidence": ("#009E73", ":", 1.6),
    "kernel_density": ("#D55E00", ":", 1.8),
    "kl_divergence": ("#E69F00", "--", 1.2),
    "uncertainty": ("#0072B2", "-", 1.8),
    "closeness": ("#D55E00", "-", 1.8),
    "all": ("#000000", "-", 2.2),
}


def roc_figure(
    config: StudyConfig,
    curves: Mapping[Condition, Mapping[str, Sequence[float]]],
    areas: Mapping[Condition, Mapping[str, float]],
    grid: np.ndarray,
    images: int,
) -> bytes:
    """The grid of ROC curves, a row for each epsilon, a column for each attack, as PNG.

    Args:
        config: of the study.
        curves: true-positive rates at the grid, by condition and set of metrics.
        areas: ROC-AUC, likewise.
        grid: false-positive rates.
        images: how many source images there are.

    Source:
        Tuna, Catak, Eskil (2020), figures 9 and 10; here held out.
    """
    rows, columns = len(config.epsilons), len(config.conditions) // len(config.epsilons)
    figure = Figure(figsize=(4.2 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, condition in enumerate(config.conditions):
        _panel(axes.flat[place], condition, curves[condition], areas[condition], grid)
    for place in axes[-1]:
        place.set_xlabel("false-positive rate")
    for place in axes[:, 0]:
        place.set_ylabel("true-positive rate")
    figure.suptitle(
        f"{config.dataset}: all adversarial against clean and noisy twins (sigma = epsilon) of "
        f"{images:,} images, held out by source image"
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()


def _panel(
    axes: Axes,
    condition: Condition,
    curves: Mapping[str, Sequence[float]],
    areas: Mapping[str, float],
    grid: np.ndarray,
) -> None:
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    for name in METRIC_SETS:
        colour, line, width = _STYLES[name]
        label = f"{name.replace('_', ' ').replace('kl', 'KL')}  {areas[name]:.3f}"
        axes.plot(grid, curves[name], line, color=colour, linewidth=width, label=label)
    axes.set_title(f"{condition.attack}, epsilon {condition.epsilon:.2f}")
    axes.set_aspect("equal")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(visible=True, linewidth=0.4, alpha=0.5)
    axes.legend(title="ROC-AUC", fontsize=7, title_fontsize=7, loc="lower right")
