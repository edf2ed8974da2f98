"""Helpers shared by figures 4 to 7: metrics as a function of attack strength."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leery.reporting import INK, PALETTE, new_figure
from leery.study._report._comparisons import near_flip
from leery.study._report._style import METRIC_NAMES, epsilon_axis
from leery.study._tables import StudyResult

__all__ = [
    "CLOSE_LINES",
    "KL_LABELS",
    "by_reading",
    "crossing_text",
    "draw_trace",
    "grid_text",
    "image_title",
    "kl_panels",
    "mark_flip",
    "mean_title",
    "trace_alt",
]

CLOSE_LINES: dict[str, dict[str, Any]] = {
    "source": {"color": PALETTE["vermillion"], "linestyle": "-"},
    "target": {"color": PALETTE["blue"], "linestyle": "-"},
    "predicted": {"color": INK, "linestyle": ":", "linewidth": 2.2},
}


KL_LABELS = {"kl_divergence": "softmax", "kl_divergence_sum": "by sum"}
"""Labels of the conversions of features to probabilities."""


def kl_panels(table: pd.DataFrame) -> tuple[Figure, Any]:
    """Make a row of two panels, one image and many, for each reading of the KL divergence."""
    count = len(list(by_reading(table)))
    figure = new_figure(10, 3.2 * count + 0.2)
    panels = figure.subplots(count, 2, sharex=True, squeeze=False)
    for row, (name, label) in zip(panels, KL_LABELS.items(), strict=False):
        of_reading = table[table["metric"] == name]
        row[0].set_title(f"{label}: {image_title(of_reading)}")
        row[1].set_title(f"{label}: {mean_title(of_reading)}")
        for axes in row:
            axes.set_ylabel("KL divergence (nats)")
    for axes in panels[-1]:
        epsilon_axis(axes)
    return figure, panels


def by_reading(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for name in KL_LABELS:
        yield table[table["metric"] == name]


def draw_trace(panels: Any, rows: pd.DataFrame, line: dict[str, Any], label: str) -> None:  # noqa: ANN401
    """Draw one image in the first panel, and mean and band in the second."""
    image, mean = (rows[rows["shown"] == shown] for shown in ("image", "mean"))
    if len(image):
        panels[0].plot(image["epsilon"], image["value"], label=label, **line)
    if len(mean):
        panels[1].plot(mean["epsilon"], mean["value"], label=label, **line)
        panels[1].fill_between(
            mean["epsilon"], mean["low"], mean["high"], color=line["color"], alpha=0.15, lw=0
        )


def mark_flip(axes: Axes, rows: pd.DataFrame, colour: str = INK) -> None:
    """Mark the first strength at which the image's predicted class differs from that at 0."""
    image = rows[rows["shown"] == "image"]
    changed = image[image["predicted"] != image["predicted"].iloc[0]] if len(image) else image
    if len(changed):
        axes.axvline(float(changed["epsilon"].min()), color=colour, linestyle=":", linewidth=1)


def image_title(table: pd.DataFrame) -> str:
    return "the chosen image" if (table["shown"] == "image").any() else "no image changes"


def mean_title(table: pd.DataFrame) -> str:
    """Title with the number of images in the mean, and of those with a target class."""
    mean = table[table["shown"] == "mean"]
    if mean.empty:
        return "no image"
    title = f"mean of {int(mean['images'].max()):,} images"
    targets = mean.loc[mean["against"] == "target", "images"]
    return f"{title} (target: {int(targets.min()):,})" if len(targets) else title


def grid_text(study: StudyResult) -> str:
    table = study.of_first_seed("turning-points")
    step, images = table["step"].iloc[0], table["source"].nunique()
    return (
        "The chosen image is that of figure 1; mean and band (10 to 90%) are over the first "
        f"{images:,} correctly classified test images. Steps of {step:g}. "
    )


def trace_alt(study: StudyResult, name: str, what: str) -> str:
    table = study.of_first_seed(name)
    mean = table[table["shown"] == "mean"]
    parts = []
    for (attack, metric, against), rows in mean.groupby(
        ["attack", "metric", "against"], sort=False
    ):
        ends = rows.sort_values("epsilon")["value"]
        label = f"{METRIC_NAMES[metric]}, {against} class"
        parts.append(f"{attack}, {label}: from {ends.iloc[0]:.3g} to {ends.iloc[-1]:.3g}")
    return f"{what} against epsilon. Means of the images, " + "; ".join(parts) + "."


def crossing_text(study: StudyResult, column: str, attack: str) -> str:
    table = study.of_first_seed("turning-points")
    rows = table[(table["attack"] == attack) & table["flip"].notna()]
    return f"{near_flip(rows, column).mean():.0%}" if len(rows) else "none"
