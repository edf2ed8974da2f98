"""Progress bars on standard error, hidden unless it is a terminal."""

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
    """Progress bars (rich's ``Progress``) on standard error; hidden unless it is a terminal.

    Args:
        enabled: False hides the bars on a terminal too.
        in_bytes: True if progress is counted in bytes.
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
