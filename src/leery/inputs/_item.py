"""One input as it was read, or why it could not be."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

__all__ = ["Item", "printable"]


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        name: of the file, and for files with several inputs "#" and the row.
        image: as the model takes it, without batch dimension; None when it could not be read.
        label: its class where the source has labels; else None.
        error: why it could not be read; "" when it was.
        stranger: True for a file in a folder that is no picture by its name or its content.
    """

    name: str
    image: Tensor | None
    label: int | None = None
    error: str = ""
    stranger: bool = False


def printable(path: Path) -> str:
    """A path as text that can be written in UTF-8, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
