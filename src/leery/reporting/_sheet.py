"""A table of a page: its cells, how they read, by what they are sorted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Cell", "Sheet"]


@dataclass(frozen=True)
class Cell:
    """What a cell says, and the number that it is sorted by, if it is one."""

    text: str
    sort: float | None = None


@dataclass(frozen=True)
class Sheet:
    """A table of a page.

    Attributes:
        key: unique in the page.
        caption: what the table says.
        headings: of the columns.
        rows: their cells.
        note: what a reader should know.
    """

    key: str
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = field(default="")

    @property
    def long(self) -> bool:
        """Whether a reader will want to filter its rows."""
        return len(self.rows) > 30  # noqa: PLR2004 - a screenful
