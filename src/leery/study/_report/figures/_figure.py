"""A figure of the study: how it is drawn and described."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from leery.study._tables import StudyResult

__all__ = ["StudyFigure"]


@dataclass(frozen=True)
class StudyFigure:
    """How a figure is drawn and described, from one study.

    Attributes:
        name: of its files.
        title: which figure of the paper it is, and of what.
        alt: what it shows, for those who cannot see it.
        caption: what there is to see.
        draw: makes it.
        table: the name of the table that it is drawn from.
    """

    name: str
    title: str
    alt: Callable[[StudyResult], str]
    caption: Callable[[StudyResult], str]
    draw: Callable[[StudyResult], Figure]
    table: str
