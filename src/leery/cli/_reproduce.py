"""``leery reproduce``: the paper's study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leery.cli._groups import with_groups
from leery.cli._options import DataDir, Seed, Workers, stoppable

__all__ = ["reproduce"]

_Dataset = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="Dataset: mnist, fashion-mnist or all.", show_default=False
    ),
]

_Limit = Annotated[
    int | None,
    typer.Option(help="Use only the first N test images; by default all.", show_default=False),
]

_Out = Annotated[
    Path | None,
    typer.Option(
        help="Output folder; by default runs/DATASET, or runs for all.",
        show_default=False,
    ),
]

_Retrain = Annotated[
    bool,
    typer.Option("--retrain", help="Train the classifier instead of using the shipped weights."),
]

_Seeds = Annotated[
    int | None,
    typer.Option(
        help="Train this many classifiers, with --seed and the seeds after it; show mean and "
        "standard deviation.",
        show_default=False,
    ),
]


@with_groups
def reproduce(
    dataset: _Dataset,
    *,
    limit: _Limit = None,
    out: _Out = None,
    retrain: _Retrain = False,
    seed: Seed = 0,
    seeds: _Seeds = None,
    workers: Workers = None,
    data_dir: DataDir = None,
) -> None:
    """Repeat the study of arXiv:2012.06390; write tables, figures and a report to a folder.

    The study covers FGSM, BIM and PGD at the paper's two strengths; each of the six metrics, the
    two groups and all six together; in-sample as in the paper, and cross-validated by source image;
    every figure, and a verdict on every claim. An interrupted run resumes where it stopped.

    Examples:
      leery reproduce mnist
      leery reproduce all
      leery reproduce fashion-mnist --out runs/fashion
      leery reproduce mnist --limit 2000 --seeds 3
    """
    from leery import study

    config = study.StudyConfig(
        next(iter(study.STUDIES)) if dataset == "all" else dataset,
        limit=limit, seed=seed, retrain=retrain, seeds=seeds, data_dir=data_dir,
    )  # fmt: skip
    with stoppable("run the command again, and it goes on where it stopped"):
        if dataset == "all":
            folder = out or Path("runs")
            every = [replace(config, dataset=name) for name in study.STUDIES]
            results = study.reproduce_all(every, folder, workers=workers, progress=True)
        else:
            folder = out or Path("runs") / dataset
            results = [study.reproduce(config, folder, workers=workers, progress=True)]
    console = Console(highlight=False)
    for part in study.terminal_summary(results, folder / study.PAGE):
        console.print(part)
        console.print()
