"""``leery inspect``: what a detector file holds, and how its classifier is run."""

from typing import Annotated

import typer
from rich.console import Console

from leery.cli._describe import described, print_description
from leery.cli._model import Weights, load_model
from leery.cli._options import Guard, Json, print_json
from leery.detector import Detector

__all__ = ["inspect"]

_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODULE:FACTORY",
        help="Also show how this classifier's passes are run. Its code is run.",
        show_default=False,
    ),
]


def inspect(
    guard: Guard, *, model: _Model = None, weights: Weights = None, as_json: Json = False
) -> None:
    """Show what a detector file holds; nothing in it is run, and no classifier is needed.

    Examples:
      leery inspect guard.leery
      leery inspect guard.leery --model net:make --weights net.safetensors
    """
    facts = described(guard)
    plan = None
    if model is not None:
        plan = Detector.load(guard, load_model(model, weights)).explain_plan()
        facts["plan"] = str(plan).splitlines()
    if as_json:
        print_json(facts)
        return
    console = Console(highlight=False)
    print_description(console, guard, facts)
    if plan is not None:
        console.print(str(plan), markup=False)
