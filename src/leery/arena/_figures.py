"""Figures of an arena."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leery.reporting import INK, MUTED, PALETTE, new_figure

__all__ = ["alarms_figure", "cells_figure", "cost_figure", "trainings_figure"]

_DARK = 0.5
"""Fraction of the colour scale above which a cell of a heat map is dark and its number white."""

_NAMED = 0.05
"""Share found from which a point in the figure of costs has a name; below, names would overlap."""

_LONG, _HIGH = 0.7, 0.03
"""Length of a name in decades of cost, and its height as a share, in the figure of costs."""


def cells_figure(shares: pd.DataFrame) -> Figure:
    """Share of successful attacks that is found, by detector (rows) and attack (columns)."""
    return _heat_map(shares, "Blues")


def alarms_figure(shares: pd.DataFrame) -> Figure:
    """Share of images that is flagged, by detector (rows) and harmless change (columns)."""
    return _heat_map(shares, "Oranges", top=0.1, form=lambda share: f"{100 * share:.1f}")


def trainings_figure(panels: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """A heat map for each detector: what it learned from (rows) and attack (columns)."""
    rows = sum(len(shares) for _, shares in panels)
    figure = new_figure(9.0, 0.26 * rows + 0.5 * len(panels) + 1.1)
    heights = [len(shares) for _, shares in panels]
    every = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)
    for axes, (name, shares) in zip(every[:, 0], panels, strict=True):
        _draw(axes, shares, "Blues", top=1.0)
        axes.set_title(name, loc="left", fontsize=8)
        axes.tick_params(labelbottom=axes is every[-1, 0])
    return figure


def cost_figure(table: pd.DataFrame) -> Figure:
    """Cost per image against what is found: of the worst attack (left), and on average (right).

    Detectors for which no other one is both cheaper and better are connected. Where points are
    close, only the best one is named.

    Args:
        table: columns detector, score_ms, worst and mean.
    """
    figure = new_figure(9.0, 4.2)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, column, title in zip(
        panels, ("worst", "mean"), ("worst attack", "mean"), strict=True
    ):
        best = table.sort_values(["score_ms", column], ascending=[True, False])
        best = best[best[column] > best[column].cummax().shift(fill_value=-1)]
        axes.plot(best["score_ms"], best[column], color=PALETTE["vermillion"], linewidth=1)
        axes.scatter(table["score_ms"], table[column], color=PALETTE["blue"], s=14, zorder=2)
        _name(axes, table[table[column] >= _NAMED], column)
        axes.set_title(title)
    panels[0].set_xscale("log")
    panels[0].set_ylim(-0.03, 1.05)
    panels[0].margins(x=0.2)
    panels[0].set_ylabel("share found")
    figure.supxlabel("processor time per image, ms", fontsize=9)
    return figure


def _name(axes: Axes, table: pd.DataFrame, column: str) -> None:
    """Write each detector's name beside its point, unless it would cover one that found more."""
    written: list[tuple[float, float]] = []
    for row in table.sort_values(column, ascending=False).to_dict("records"):
        cost, share = float(row["score_ms"]), float(row[column])
        if any(
            abs(np.log10(cost / other)) < _LONG and abs(share - height) < _HIGH
            for other, height in written
        ):
            continue
        written.append((cost, share))
        axes.annotate(
            str(row["detector"]), (cost, share), xytext=(4, 3), textcoords="offset points",
            fontsize=6.5, color=INK,
        )  # fmt: skip


def _plain(share: float) -> str:
    return f"{share:.2f}".removeprefix("0")


def _heat_map(
    shares: pd.DataFrame, colours: str, top: float = 1.0, form: Callable[[float], str] = _plain
) -> Figure:
    figure = new_figure(9.0, 0.3 * len(shares) + 1.2)
    _draw(figure.subplots(), shares, colours, top, form)
    return figure


def _draw(
    axes: Axes,
    shares: pd.DataFrame,
    colours: str,
    top: float,
    form: Callable[[float], str] = _plain,
) -> None:
    values = shares.to_numpy(dtype=float)
    axes.pcolormesh(
        np.arange(values.shape[1] + 1), np.arange(values.shape[0] + 1), values,
        cmap=colours, vmin=0, vmax=top, edgecolors=MUTED, linewidth=0.3,
    )  # fmt: skip
    for row, column in np.ndindex(*values.shape):
        share = values[row, column]
        if np.isfinite(share):
            axes.text(
                column + 0.5, row + 0.5, form(float(share)), fontsize=6.5,
                ha="center", va="center", color="#ffffff" if share > _DARK * top else "#1a1a1a",
            )  # fmt: skip
    axes.set_xticks(np.arange(values.shape[1]) + 0.5, shares.columns, rotation=45, ha="right")
    axes.set_yticks(np.arange(values.shape[0]) + 0.5, shares.index)
    axes.tick_params(labelsize=7, length=0)
    axes.invert_yaxis()
    axes.grid(visible=False)
