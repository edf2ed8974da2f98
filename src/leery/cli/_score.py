"""``leery score``: verdicts on any number of inputs."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import leery
from leery.cli._groups import ClassifierOptions, InputOptions, ShareOptions, with_groups
from leery.cli._options import (
    INCOMPLETE,
    DetectorFile,
    Json,
    OwnMetrics,
    Resize,
    facts_table,
    print_json,
    stoppable,
)
from leery.errors import InputError

if TYPE_CHECKING:
    from leery.scoring import Summary

__all__ = ["score"]

_Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUTS",
        help="Pictures, folders of pictures, .npy, .npz, or .parquet with encoded pictures.",
        show_default=False,
    ),
]

_Out = Annotated[Path, typer.Option(help="Output file: .parquet, .csv or .jsonl.")]

_Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]


@with_groups
def score(
    file: DetectorFile,
    sources: _Inputs,
    classifier: ClassifierOptions,
    reading: InputOptions,
    sharing: ShareOptions,
    *,
    out: _Out = Path("scores.parquet"),
    resume: _Resume = False,
    metric: OwnMetrics = None,
    resize: Resize = False,
    as_json: Json = False,
) -> None:
    """Write a row for each input: predicted class, score, p-value, verdict, every metric.

    Only a few inputs are in memory at a time. An input that cannot be read gets a row with the
    reason; the exit code is then 3. The rows are the same, byte for byte, however many
    processes or shards compute them, on machines of the same kind and unless the detector draws
    new dropout masks at each call.

    Examples:
      leery score guard.leery incoming/ --model net:make --out scores.csv
      leery score guard.leery day1.parquet day2.parquet --model net:make --resume
      leery score guard.leery incoming/ --model net:make --shard 2/3
      leery score guard.leery incoming/ --model net:make --merge
    """
    twice = [str(path) for path in sources if sources.count(path) > 1]
    if twice:
        message = f"expected each input once, got {twice[0]} twice; leave one out"
        raise InputError(message)
    shard = sharing.chosen(resume=resume)
    saved = leery.detector.SavedDetector(file, classifier.load, tuple(metric or ()))
    detector, identity = saved.load()
    form = reading.format(shape=detector.inputs_.shape, resize=resize)
    form = replace(form, labels_key=None)
    with stoppable(sharing.advice(shard)):
        scoring = leery.scoring.Scoring(detector, identity, sources, form, out)
        make = partial(leery.scoring.scoring_of, saved, sources, form, out)
        summary = sharing.run(scoring, make, detector.model, shard, title="scoring", resume=resume)
    text = str(out) if shard is None else f"shard {shard} of {out}"
    if as_json:
        print_json({**asdict(summary), "out": str(out)})
    else:
        console = Console(highlight=False)
        console.print(facts_table(text, _shown(summary)))
        if shard is not None:
            console.print("Once all shards are done, --merge writes the output.")
    if summary.unreadable:
        raise typer.Exit(INCOMPLETE)


def _shown(summary: Summary) -> dict[str, str]:
    readable = summary.rows - summary.unreadable
    flagged = "none scored"
    if summary.flagged is None:
        flagged = "not calibrated; leery calibrate gives it a threshold"
    elif readable:
        flagged = f"{summary.flagged:,} ({summary.flagged / readable:.2%})"
    return {
        "scored": f"{readable:,}",
        "flagged as adversarial": flagged,
        "unreadable": f"{summary.unreadable:,}"
        + (f", such as {summary.reason}" if summary.unreadable else ""),
    }
