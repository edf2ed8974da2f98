"""Recipes of a sentinel, judged on training images only; and the sentinels that ship with leery.

    python benchmarks/sentinels.py trials mnist clean_weight=0.6 epochs=40,hidden=150
    python benchmarks/sentinels.py ship mnist

Each recipe of ``trials`` is a line of settings separated by commas. A sentinel is trained on 50,000
random training images; its threshold is set on 5,000 others and its certificates are counted on the
last 5,000. One JSON line per recipe is printed. ``ship`` trains on all but the last 5,000 of the
same order, and writes the weights and their record into the package.
"""

import json
import sys
import time
from ast import literal_eval
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import leery.certify
from leery._recorded import write_recorded
from leery.certify import Sentinel
from leery.classifiers import pretrained
from leery.data import load
from leery.evaluation import certificates, certified_shares
from leery.training import FitParts, SentinelRecipe

EPSILONS = {"mnist": (0.1, 0.2, 0.3), "fashion-mnist": (0.03, 0.05, 0.1)}
HELD = 5000
"""Number of training images that shipped sentinels are not trained on."""

RECIPES = {"mnist": SentinelRecipe(), "fashion-mnist": SentinelRecipe(hidden=100)}
"""The recipes of the sentinels that ship; together their weights take less than 1 MB."""

RATES = (0.01, 0.05)
WEIGHTS = Path(leery.certify.__file__).parent / "weights"
PARTS = Path("runs/sentinels")

Labelled = tuple[Tensor, Tensor]


def split(dataset: str, held: int = HELD) -> tuple[Labelled, Labelled]:
    """Training images for the sentinel, and the last ones of their random order."""
    images, labels = load(dataset, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, rest = order[:-held], order[-held:]
    return (images[train], labels[train]), (images[rest], labels[rest])


def recipe_of(text: str) -> SentinelRecipe:
    """The recipe of a line of settings."""
    pairs = (part.split("=") for part in text.split(",") if part)
    return SentinelRecipe(**{name: literal_eval(value) for name, value in pairs})


def trial(dataset: str, recipe: SentinelRecipe) -> dict[str, object]:
    """The settings of a recipe and what its sentinel certifies."""
    train, (images, labels) = split(dataset, 2 * HELD)
    start = time.process_time()
    sentinel = Sentinel(pretrained(dataset).model, recipe=recipe).fit(*train)
    row: dict[str, object] = {**asdict(recipe), "seconds": time.process_time() - start}
    for rate in RATES:
        sentinel.calibrate(images[:HELD], labels[:HELD], fpr=rate)
        rows = certificates(
            sentinel, images[HELD:], labels[HELD:], epsilons=EPSILONS[dataset], radii=False
        )
        for found in certified_shares(rows).to_dict("records"):
            row[f"{found['what']} {found['epsilon']:g} at {rate:g}"] = round(found["share"], 4)
    return row


def ship(dataset: str) -> Path:
    """Train the sentinel that ships with leery, and write it into the package."""
    train, _ = split(dataset)
    shipped = pretrained(dataset)
    with FitParts(PARTS / dataset, resume=True) as parts:
        sentinel = Sentinel(shipped.model, recipe=RECIPES[dataset]).fit(*train, parts=parts)
    tensors, facts = sentinel.parts()
    record = {
        "dataset": dataset,
        "recipe": asdict(RECIPES[dataset].suited_to(train[0])),
        "seed": 0,
        "order": "torch.randperm(60000, generator=torch.Generator().manual_seed(0))",
        "held_out": f"the last {HELD} of the order",
        "inputs": sentinel.inputs_.facts(),
        "parts": facts,
        "data_sha256": shipped.record["data_sha256"],
        "command": f"python benchmarks/sentinels.py ship {dataset}",
        "versions": {"torch": version("torch"), "python": sys.version.split()[0]},
        "threads": torch.get_num_threads(),
    }
    return write_recorded(WEIGHTS, dataset, tensors, record)


def main() -> None:
    """Judge recipes, or train a sentinel that ships."""
    torch.set_num_threads(1)
    command, dataset, *texts = sys.argv[1:]
    if command == "ship":
        print(ship(dataset))
    else:
        for text in texts or [""]:
            print(json.dumps(trial(dataset, recipe_of(text))), flush=True)


if __name__ == "__main__":
    main()
