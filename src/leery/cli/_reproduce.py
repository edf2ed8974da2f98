"""``leery reproduce``: the paper's study."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leery import study
from leery.cli._options import DataDir, Dataset, Seed, stoppable

__all__ = ["reproduce"]


def reproduce(
    dataset: Dataset,
    *,
    limit: Annotated[
        int | None, typer.Option(help="Use only the first so many test images.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of the files; by default runs/DATASET.", show_default=False),
    ] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train the classifier anew.")] = False,
    seed: Seed = 0,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes; by default one a processor.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run the paper's study on a dataset: tables on the terminal, files in a folder.

    FGSM, BIM and PGD at the paper's two strengths; each of the six metrics, the two groups and
    all six together; in-sample as in the paper, and held out by source image. A run that was cut
    off goes on where it stopped.

    Examples:
      leery reproduce mnist
      leery reproduce fashion-mnist --out runs/fashion
      leery reproduce mnist --limit 1000 --workers 1
    """
    config = study.StudyConfig(dataset, limit=limit, seed=seed, retrain=retrain, data_dir=data_dir)
    folder = out or Path("runs") / dataset
    with stoppable("run the command again, and it goes on where it stopped"):
        result = study.reproduce(config, folder, workers=workers, progress=True)
    console = Console(highlight=False)
    for part in study.terminal_summary(result):
        console.print(part)
        console.print()
