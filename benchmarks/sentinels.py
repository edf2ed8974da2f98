"""What recipes of a sentinel certify, judged on training images only.

    python benchmarks/sentinels.py mnist clean_weight=0.6 width=24 ...

Each recipe is a line of settings separated by commas, such as ``clean_weight=0.6,epochs=40``. A
sentinel is trained on 50,000 random training images; its threshold is set on 5,000 others and its
certificates are counted on the last 5,000. One JSON line per recipe is printed.
"""

import json
import sys
import time
from ast import literal_eval
from dataclasses import asdict

import torch

from leery.certify import Sentinel
from leery.classifiers import pretrained
from leery.data import load
from leery.evaluation import certificates, certified_shares
from leery.training import SentinelRecipe

EPSILONS = {"mnist": (0.1, 0.2, 0.3), "fashion-mnist": (0.03, 0.05, 0.1)}
TRAINED, SET = 50_000, 5_000
RATES = (0.01, 0.05)


def recipe_of(text: str) -> SentinelRecipe:
    """The recipe of a line of settings."""
    pairs = (part.split("=") for part in text.split(",") if part)
    return SentinelRecipe(**{name: literal_eval(value) for name, value in pairs})


def measured(dataset: str, recipe: SentinelRecipe) -> dict[str, object]:
    """The settings of a recipe and what its sentinel certifies."""
    images, labels = load(dataset, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, held, judged = order.split([TRAINED, SET, len(order) - TRAINED - SET])
    start = time.process_time()
    sentinel = Sentinel(pretrained(dataset).model, recipe=recipe).fit(images[train], labels[train])
    row: dict[str, object] = {**asdict(recipe), "seconds": time.process_time() - start}
    for rate in RATES:
        sentinel.calibrate(images[held], labels[held], fpr=rate)
        rows = certificates(
            sentinel, images[judged], labels[judged], epsilons=EPSILONS[dataset], radii=False
        )
        for found in certified_shares(rows).to_dict("records"):
            row[f"{found['what']} {found['epsilon']:g} at {rate:g}"] = round(found["share"], 4)
    return row


def main() -> None:
    """Measure each recipe of the command line."""
    torch.set_num_threads(1)
    dataset, *texts = sys.argv[1:]
    for text in texts or [""]:
        print(json.dumps(measured(dataset, recipe_of(text))), flush=True)


if __name__ == "__main__":
    main()
