"""``leery arena``: every detector against every attack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

import leery
from leery.cli._groups import with_groups
from leery.cli._options import (
    INCOMPLETE,
    WAITING,
    DataDir,
    Dataset,
    Seed,
    Workers,
    plain_text,
    stoppable,
)
from leery.errors import InputError
from leery.names import BASELINES, IMAGE_BASELINES, SUPERVISED_BASELINES

if TYPE_CHECKING:
    import pandas as pd

    from leery.tasks import Shard

__all__ = ["arena"]

_NAMES = (*BASELINES, *IMAGE_BASELINES, *SUPERVISED_BASELINES)

_Limit = Annotated[
    int,
    typer.Option(
        help="Maximum number of images per attack, at least 20; for slow attacks at most 150. "
        "False alarms are counted on at most five times as many images, up to 2500."
    ),
]

_Out = Annotated[
    Path | None,
    typer.Option(help="Output folder; by default runs/arena-DATASET.", show_default=False),
]

_Detectors = Annotated[
    list[str] | None,
    typer.Option(
        "--detector",
        metavar="MODULE:FUNCTION",
        help="Your own detector: a class or function that takes the classifier and returns a "
        "leery.observation.FittableScorer. Can be repeated.",
        show_default=False,
    ),
]

_Only = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Name of a detector to run: leery, {', '.join(_NAMES)}. Can be repeated. By default "
        "all run. Detectors given with --detector run in any case.",
        show_default=False,
    ),
]

_Classifier = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a classifier written by leery train; by default the shipped one.",
        show_default=False,
    ),
]

_Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Run only shard I of N, such as 2/3; all machines must share the output folder. Exit "
        "code 4: parts of other shards are missing; run it again when those are done.",
        show_default=False,
    ),
]

_Merge = Annotated[
    bool,
    typer.Option(
        "--merge", help="Write the tables from the parts of all shards; refused if any is missing."
    ),
]

_Seeds = Annotated[
    int,
    typer.Option(
        help="Number of classifiers: the shipped one or that of --classifier, and others trained "
        "with new seeds."
    ),
]


@with_groups
def arena(
    dataset: Dataset,
    *,
    limit: _Limit = 1000,
    out: _Out = None,
    only: _Only = None,
    detector: _Detectors = None,
    seed: Seed = 0,
    seeds: _Seeds = 1,
    classifier: _Classifier = None,
    workers: Workers = None,
    shard: _Shard = None,
    merge: _Merge = False,
    data_dir: DataDir = None,
) -> None:
    """Compare detectors under every attack; write tables to a folder.

    leery's default detector and published ones are fitted to the same classifier. Each has its own
    threshold, set on the same clean and harmlessly changed images, and is judged on the same
    adversarial images. Detectors that learn from attacks are judged on attacks of other kinds. The
    attacker knows the classifier but not the detector. An interrupted run resumes where it stopped.

    Examples:
      leery arena mnist --limit 300
      leery arena fashion-mnist --detector mine:MyDetector
      leery arena mnist --classifier runs/mnist/classifier
      leery arena mnist --shard 1/3
      leery arena mnist --merge
    """
    from leery.arena import PAGE, ArenaConfig, run_arena, run_arena_shard, summary

    if shard and merge:
        message = "expected --merge alone, got --shard too; run one after the other"
        raise InputError(message)
    config = ArenaConfig(
        dataset, limit=limit, only=tuple(only) if only else None, detectors=tuple(detector or ()),
        seed=seed, seeds=seeds, classifier=classifier, data_dir=data_dir,
    )  # fmt: skip
    folder = out or Path("runs") / f"arena-{dataset}"
    console = Console(highlight=False)
    with stoppable("run the command again to resume where it stopped"):
        if shard is not None:
            own = leery.tasks.Shard.parse(shard)
            lacking = run_arena_shard(config, folder, own, workers=workers, progress=True)
            console.print(_said(own, lacking))
            if lacking is not None:
                raise typer.Exit(WAITING)
            return
        tables = run_arena(config, folder, workers=workers, progress=True, merge=merge)
    board = summary(tables["leaderboard"])
    console.print(_leaderboard(board))
    failed = board[board.error != ""]
    for row in failed.itertuples():
        console.print(plain_text(f"{row.detector}: {row.error}"), soft_wrap=True)
    console.print(f"Page: {folder / PAGE}", markup=False)
    if len(failed):
        raise typer.Exit(INCOMPLETE)


def _said(shard: Shard, lacking: str | None) -> str:
    """What a shard says at its end."""
    if lacking is None:
        return f"Shard {shard} is done; once all shards are, --merge writes the tables."
    return (
        f"Shard {shard} stopped, because parts of other shards are missing ({lacking}); run it "
        "again when they are done."
    )


def _leaderboard(table: pd.DataFrame) -> Table:
    """One row per detector, sorted by the share found for its worst attack."""
    shown = Table(title="Successful attacks found at 1 % false alarms")
    shown.add_column("detector", no_wrap=True)
    shown.add_column("worst attack")
    for heading in ("share found", "mean share", "false alarms"):
        shown.add_column(heading, justify="right")
    for row in table.itertuples():
        name = plain_text(f"{row.detector} *" if row.learns_from_attacks else str(row.detector))
        if row.error:
            shown.add_row(name, "error: see below", "", "", "")
            continue
        shown.add_row(
            name,
            plain_text(str(row.worst_attack_at_1_fpr)),
            *(f"{share:.2f}" for share in (row.worst_at_1_fpr, row.mean_at_1_fpr)),
            f"{row.false_alarms_at_1_fpr:.1%}",
        )
    if table.learns_from_attacks.any():
        shown.caption = "* learns from attacks; judged on attacks of other kinds"
    return shown
