"""Progress bars on standard error, silent where nobody watches."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["progress_bars"]


@contextmanager
def progress_bars(*, enabled: bool = True) -> Iterator[Progress]:
    """A set of bars (rich's ``Progress``) on standard error; invisible where that is no terminal.

    Args:
        enabled: False keeps even a terminal quiet.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    visible = enabled and console.is_terminal
    with Progress(*columns, console=console, disable=not visible) as progress:
        yield progress
