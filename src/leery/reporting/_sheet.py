"""Sortable tables of a page."""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Cell", "Sheet"]


@dataclass(frozen=True)
class Cell:
    """Text of a table cell, and the number by which it is sorted, if any."""

    text: str
    sort: float | None = None


@dataclass(frozen=True)
class Sheet:
    """A table of a page.

    Attributes:
        key: identifier, unique in the page.
        caption: caption of the table.
        headings: column headings.
        rows: cells of each row.
        note: explanatory note.
    """

    key: str
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = field(default="")

    @property
    def long(self) -> bool:
        """True if the table is long enough to need a row filter."""
        return len(self.rows) > 30  # noqa: PLR2004 - a screenful
