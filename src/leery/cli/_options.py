"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DataDir", "Dataset", "Seed"]

Dataset = Annotated[
    str, typer.Argument(metavar="DATASET", help="mnist or fashion-mnist", show_default=False)
]

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="A folder with the data files; else the cache, Debian's package, the mirrors and "
        "the package clients are tried. LEERY_DATA_DIR names one for good.",
        show_default=False,
    ),
]

Seed = Annotated[int, typer.Option(help="Of everything random.")]
