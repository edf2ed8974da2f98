"""One input, or the reason why it cannot be read."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from leery.errors import InputError

__all__ = ["Item", "gone", "printable"]


@dataclass(frozen=True)
class Item:
    """One input that was read, or the reason why it cannot be.

    Attributes:
        name: name of the file, followed by "#" and the row for files with several inputs.
        image: the model input, without batch dimension; None if it cannot be read.
        label: the class; None if the source has no labels.
        error: reason why it cannot be read; "" if it can.
        stranger: True for a file in a folder that is not an image by name or content.
    """

    name: str
    image: Tensor | None
    label: int | None = None
    error: str = ""
    stranger: bool = False


def printable(path: Path) -> str:
    """A path as text that can be written in UTF-8, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def gone(path: str | Path) -> InputError:
    """The error for a file that has disappeared since the files were listed."""
    message = (
        f"expected {printable(Path(path))} to be there until the end, got no such file; put it "
        "back with its modification time, then run the command again, with --resume if it has that "
        "option"
    )
    return InputError(message)
