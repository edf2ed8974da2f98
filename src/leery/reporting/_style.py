"""Style of figures: colours, fonts and export to SVG."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = ["INK", "MUTED", "PALETTE", "figure_style", "new_figure", "themed", "to_svg"]

# Okabe and Ito's colour-blind-safe palette; lines also differ in style. Yellow is left out because
# it is hardly visible on white.
PALETTE: Mapping[str, str] = {
    "blue": "#0072B2",
    "sky": "#56B4E9",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "orange": "#E69F00",
    "purple": "#CC79A7",
}

INK, PAPER, MUTED = "#1b1b1b", "#fefefe", "#8a8a8a"
"""Colours of text and axes, background and secondary elements; MUTED is legible on both grounds."""

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "grid.color": MUTED,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.markersize": 4,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "svg.fonttype": "path",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Use leery's figure style inside a block, regardless of the user's matplotlib settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)  # type: ignore[arg-type]  # its keys are literals
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def to_svg(figure: Figure, name: str) -> str:
    """Export a figure to SVG that is identical byte by byte every time.

    Args:
        figure: the drawn figure.
        name: name of the figure, which makes its element ids unique within a page.
    """
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def themed(svg: str, name: str) -> str:
    """Adapt an SVG for a page: colours and width of the page, and unique element ids.

    It scales with the page, within limits that keep its text readable.
    """
    body = svg[svg.index("<svg") :]
    width = float(re.findall(r'<svg[^>]*? width="([\d.]+)pt"', body)[0])
    size = f'style="max-width: {1.5 * width:.0f}px; min-width: {0.9 * width:.0f}px"'
    body = re.sub(r'(<svg[^>]*?) width="[^"]*pt"', rf"\1 {size}", body)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", body)
    # Equal images have equal ids, to which nothing refers.
    body = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(href=")#([^"]+)"', rf'\1#{name}-\2"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    return body.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
