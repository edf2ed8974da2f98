"""What reports share: the look of figures, tables whose rows can be sorted, the shell of a page.

A program that writes a report fills these in; nothing here knows what a report is about. It needs
matplotlib and jinja2.
"""

from leery.reporting._page import page_environment, page_resource
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
    "Sheet",
    "figure_style",
    "new_figure",
    "page_environment",
    "page_resource",
    "themed",
    "to_svg",
]
