"""The command line: one module a command; errors are one sentence on standard error.

Exit codes: 0 done; 1 leery refused something and said why; 2 the command line itself is wrong;
3 done, but some inputs could not be read; 130 stopped with Ctrl-C.
"""

import io
import sys
import warnings
from typing import NoReturn

import typer
from rich.console import Console

import leery
from leery.cli import (
    _arena,
    _attack,
    _calibrate,
    _certify,
    _evaluate,
    _fit,
    _inspect,
    _report,
    _reproduce,
    _score,
    _train,
)
from leery.errors import LeeryError, LeeryWarning, machine_fault

__all__ = ["app", "main"]

app = typer.Typer(
    name="leery",
    help="Detect adversarial examples for a PyTorch image classifier.\n\n"
    "Exit codes: 0 done; 1 refused, with the reason; 2 wrong command line; 3 done, but an input "
    "could not be read or a detector raised an error; 4 parts of other shards of the "
    "arena are missing; 130 stopped with Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(name="fit")(_fit.fit)
app.command(name="calibrate")(_calibrate.calibrate)
app.command(name="score")(_score.score)
app.command(name="attack")(_attack.attack)
app.command(name="evaluate")(_evaluate.evaluate)
app.command(name="arena")(_arena.arena)
app.add_typer(_certify.certify, name="certify")
app.command(name="inspect")(_inspect.inspect)
app.command(name="reproduce")(_reproduce.reproduce)
app.command(name="report")(_report.report)
app.command(name="train")(_train.train)


@app.callback(invoke_without_command=True)
def _root(
    *,
    show_version: bool = typer.Option(
        False, "--version", metavar="", help="Print the version and exit."
    ),
) -> None:
    if show_version:
        typer.echo(leery.__version__)
        raise typer.Exit


def _warn(
    message: Warning | str, category: type[Warning], *_where: object, **_stream: object
) -> None:
    """Show leery's warnings in one line each, and no others."""
    if issubclass(category, LeeryWarning):
        typer.echo(f"leery: warning: {message}", err=True)


def main() -> NoReturn:
    """Run the command line; leery.__main__ calls it once Ctrl-C has its meaning."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a sign gets its code, not a crash after the work is done.
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _warn
    warnings.simplefilter("always", LeeryWarning)
    try:
        app(standalone_mode=True)
    except Exception as error:
        said = error if isinstance(error, LeeryError) else machine_fault(error)
        if said is None:
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"leery: {said}", markup=False)
        sys.exit(1)
    sys.exit(0)
