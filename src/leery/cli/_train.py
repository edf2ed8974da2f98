"""``leery train``: a classifier of the paper, from scratch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import leery
from leery._files import make_folder
from leery.cli._groups import with_groups
from leery.cli._options import DataDir, Dataset, Seed, stoppable
from leery.errors import InputError

if TYPE_CHECKING:
    from leery.training import Recipe

__all__ = ["train"]


@with_groups
def train(
    dataset: Dataset,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder; by default runs/DATASET/classifier.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            "--recipe",
            help="plain; for mnist also adversarial or interval, which harden the classifier "
            "against attacks, or distillation, which does not withstand attackers who know it.",
        ),
    ] = "plain",
    seed: Seed = 0,
    dropout: Annotated[
        float | None,
        typer.Option(
            help="Dropout probability; by default that of the shipped weights.", show_default=False
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Train the study's classifier like the shipped one; write its weights and a record.

    Examples:
      leery train mnist
      leery train fashion-mnist --seed 1 --out weights
      leery train mnist --recipe adversarial
    """
    leery.data.named(dataset)
    recipe = _recipe(dataset, name)
    folder = make_folder(out or Path("runs") / dataset / "classifier")
    if dropout is not None:
        recipe = replace(recipe, dropout=dropout)
    with stoppable("nothing was written"):
        trained = leery.classifiers.train(
            dataset, recipe=recipe, seed=seed, root=data_dir, progress=True
        )
    with stoppable("the weights may be incomplete; run the command again"):
        path = leery.classifiers.save_classifier(trained, folder)
    typer.echo(
        f"accuracy on the test images: {trained.record['test_accuracy']:.2%}; weights: {path}"
    )


def _recipe(dataset: str, name: str) -> Recipe:
    """The settings of a named recipe.

    Raises:
        InputError: when the dataset has no recipe of that name.
    """
    known = {
        "plain": leery.classifiers.RECIPES[dataset],
        **leery.classifiers.HARDENED.get(dataset, {}),
    }
    if name not in known:
        message = (
            f"expected one of the recipes {', '.join(known)} for {dataset}, got {name!r}; choose "
            "one with --recipe"
        )
        raise InputError(message)
    return known[name]
