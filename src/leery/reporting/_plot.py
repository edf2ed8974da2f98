"""Figures of a page."""

from dataclasses import dataclass, replace
from typing import Self

__all__ = ["Plot"]


@dataclass(frozen=True)
class Plot:
    """A figure of a page.

    Attributes:
        name: name of the figure in files and element ids.
        title: dataset, content and number of the figure in the paper.
        alt: alternative text for readers who cannot see the figure.
        caption: what the figure shows.
        svg: SVG adapted for embedding in the page.
        data: path of its data, relative to the page.
        file: path of its SVG, relative to the page.
    """

    name: str
    title: str
    alt: str
    caption: str
    svg: str
    data: str
    file: str

    def seen_from_above(self, folder: str) -> Self:
        """A copy of the figure for a page in the parent folder."""
        return replace(self, data=f"{folder}/{self.data}", file=f"{folder}/{self.file}")
