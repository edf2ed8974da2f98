"""Helpers shared by figures: panels per condition, and images."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leery.reporting import INK, new_figure
from leery.study._tables import PIXELS

__all__ = ["condition_panels", "label_grid", "pixels_of", "without_axes"]


def condition_panels(
    table: pd.DataFrame, height: float, *, sharex: bool = True
) -> tuple[Figure, Iterator[tuple[Axes, tuple[str, float], pd.DataFrame]]]:
    """Make panels with one row per strength and one column per attack, in table order."""
    epsilons, attacks = table["epsilon"].unique(), table["attack"].unique()
    figure = new_figure(4.1 * len(attacks), height * len(epsilons))
    axes = figure.subplots(len(epsilons), len(attacks), sharex=sharex, sharey=True, squeeze=False)

    def panels() -> Iterator[tuple[Axes, tuple[str, float], pd.DataFrame]]:
        for place, (epsilon, attack) in zip(axes.flat, product(epsilons, attacks), strict=True):
            place.set_title(f"{attack}, epsilon {epsilon:.2f}")
            rows = table[(table["attack"] == attack) & (table["epsilon"] == epsilon)]
            yield place, (attack, epsilon), rows

    return figure, panels()


def label_grid(figure: Figure, horizontal: str, vertical: str) -> None:
    figure.supxlabel(horizontal, fontsize=9, color=INK)
    if vertical:
        figure.supylabel(vertical, fontsize=9, color=INK)


def pixels_of(row: "pd.Series[Any]") -> np.ndarray:
    pixels: np.ndarray = row[list(PIXELS)].to_numpy(dtype=float).reshape(28, 28)
    return pixels


def without_axes(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
