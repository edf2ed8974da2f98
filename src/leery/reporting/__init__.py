"""Shared parts of reports: figure style, sortable tables and the HTML page.

These parts are independent of the content of a report. They require matplotlib and jinja2.
"""

from leery.reporting._page import page_environment, page_resource
from leery.reporting._plot import Plot
from leery.reporting._sheet import Cell, Sheet
from leery.reporting._style import (
    INK,
    MUTED,
    PALETTE,
    figure_style,
    new_figure,
    themed,
    to_svg,
)

__all__ = [
    "INK",
    "MUTED",
    "PALETTE",
    "Cell",
    "Plot",
    "Sheet",
    "figure_style",
    "new_figure",
    "page_environment",
    "page_resource",
    "themed",
    "to_svg",
]
