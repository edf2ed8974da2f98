"""``leery report``: the report of a study, again from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leery.cli._groups import with_groups
from leery.cli._options import stoppable

__all__ = ["report"]


@with_groups
def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Output folder of leery reproduce: runs/mnist, or runs for all.",
            show_default=False,
        ),
    ],
) -> None:
    """Make a study's figures, verdicts and report again from its saved tables alone.

    Nothing is measured again. If a table is missing or changed, the error names it and the command
    that makes it.

    Examples:
      leery report runs/mnist
      leery report runs
    """
    with stoppable("run the command again to have the whole report"):
        from leery import study

        pages = study.report(folder)
    for page in pages:
        typer.echo(page)
