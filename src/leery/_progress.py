"""Progress bars on standard error, silent where nobody watches."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["progress_bars"]


@contextmanager
def progress_bars(*, enabled: bool = True, in_bytes: bool = False) -> Iterator[Progress]:
    """A set of bars (rich's ``Progress``) on standard error; invisible where that is no terminal.

    Args:
        enabled: False keeps even a terminal quiet.
        in_bytes: whether what is counted are bytes.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    visible = enabled and console.is_terminal
    with Progress(*columns, console=console, disable=not visible) as progress:
        yield progress
