"""Definition of a figure of the study."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from leery.study._tables import StudyResult

__all__ = ["StudyFigure"]


@dataclass(frozen=True)
class StudyFigure:
    """Definition of a figure that is drawn and described from one study.

    Attributes:
        name: name of its files.
        title: content and number of the figure in the paper.
        alt: function that returns the alternative text.
        caption: function that returns the caption.
        draw: function that draws the figure.
        table: name of the table from which it is drawn.
    """

    name: str
    title: str
    alt: Callable[[StudyResult], str]
    caption: Callable[[StudyResult], str]
    draw: Callable[[StudyResult], Figure]
    table: str
