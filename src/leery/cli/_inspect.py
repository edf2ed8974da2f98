"""``leery inspect``: what a detector file holds, and how its classifier is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console

import leery
from leery.cli._describe import described, print_description
from leery.cli._groups import ClassifierOptions, with_groups
from leery.cli._options import DetectorFile, Json, OwnMetrics, print_json

__all__ = ["inspect"]


@dataclass(frozen=True, kw_only=True)
class _Classifier(ClassifierOptions):
    """The same options, of which none is needed."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODULE:FACTORY",
            help="Also show how this classifier's dropout passes are run. The module is executed.",
            show_default=False,
        ),
    ] = ""


@with_groups
def inspect(
    file: DetectorFile,
    classifier: _Classifier,
    *,
    metric: OwnMetrics = None,
    as_json: Json = False,
) -> None:
    """Show what a detector file holds; --model is optional; without it, none of your code is run.

    Examples:
      leery inspect guard.leery
      leery inspect guard.leery --model net:make --weights net.safetensors
    """
    facts = described(file)
    plan = None
    if classifier.model:
        detector = leery.Detector.load(
            file, classifier.load(), metrics=leery.metrics.load_metrics(metric)
        )
        plan = detector.explain_plan()
        facts["plan"] = str(plan).splitlines()
    if as_json:
        print_json(facts)
        return
    console = Console(highlight=False)
    print_description(console, file, facts)
    if plan is not None:
        console.print(str(plan), markup=False)
