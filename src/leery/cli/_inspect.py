"""``leery inspect``: what a detector file holds, and how its classifier is run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leery.cli._describe import described, print_description
from leery.cli._groups import ClassifierOptions, own_metrics
from leery.cli._options import Guard, Json, OwnMetrics, print_json
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


_Weights = Annotated[
    Path | None, typer.Option(help="The weights of that classifier.", show_default=False)
]


def inspect(
    guard: Guard,
    *,
    model: _Model = None,
    weights: _Weights = None,
    metric: OwnMetrics = None,
    as_json: Json = False,
) -> None:
    """Show what a detector file holds; nothing in it is run, and no classifier is needed.

    Examples:
      leery inspect guard.leery
      leery inspect guard.leery --model net:make --weights net.safetensors
    """
    facts = described(guard)
    plan = None
    if model is not None:
        classifier = ClassifierOptions(model=model, weights=weights).load()
        plan = Detector.load(guard, classifier, metrics=own_metrics(metric)).explain_plan()
        facts["plan"] = str(plan).splitlines()
    if as_json:
        print_json(facts)
        return
    console = Console(highlight=False)
    print_description(console, guard, facts)
    if plan is not None:
        console.print(str(plan), markup=False)
