"""Options that several commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DataDir", "Dataset", "Seed", "stoppable"]

Dataset = Annotated[
    str, typer.Argument(metavar="DATASET", help="mnist or fashion-mnist", show_default=False)
]

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="A folder with the data files; else the cache, Debian's package, the mirrors and "
        "the package clients are tried. LEERY_DATA_DIR names one for good.",
        show_default=False,
    ),
]

Seed = Annotated[int, typer.Option(help="Of everything random.")]


@contextmanager
def stoppable(consequence: str) -> Iterator[None]:
    """Turn Ctrl-C into one sentence and exit code 130.

    Args:
        consequence: what the user should know now.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(f"leery: stopped; {consequence}", err=True)
        raise typer.Exit(130) from interrupt
