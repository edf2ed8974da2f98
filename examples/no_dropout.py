"""A classifier that was made and trained without dropout: three detectors for it, compared.

python examples/no_dropout.py
"""

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from leery import PAPER_METRICS, Detector
from leery.attacks import PGD, gaussian_noise
from leery.data import load
from leery.evaluation import evaluate
from leery.mc_dropout import insert_dropout
from leery.metrics import CLOSENESS_METRICS


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int = 3) -> nn.Module:
    """Adam on cross-entropy."""
    optimiser = torch.optim.Adam(model.parameters())
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimiser.step()
    return model.eval()


def main(count: int = 10_000) -> None:
    """Train, then detect with the recommended metrics, by closeness, and with dropout put in.

    Args:
        count: of training images.
    """
    torch.manual_seed(0)
    images, labels = (part[:count] for part in load("mnist", "train"))
    clean, truth = load("mnist", "test")
    model = train(
        nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 36, 64), nn.ReLU(), nn.Linear(64, 10),
        ),
        images,
        labels,
    )  # fmt: skip

    ways = {
        "recommended": Detector(model),
        "closeness": Detector(model, metrics=CLOSENESS_METRICS),
        "dropout put in": Detector(
            insert_dropout(model, before="7", p=0.3).eval(), metrics=PAPER_METRICS
        ),
    }
    rows = []
    for name, detector in ways.items():
        detector.fit(images, labels)
        detector.fit_combiner(clean[:1000], noisy=gaussian_noise(clean[:1000], 0.2))
        detector.calibrate(clean[1000:2000], fpr=0.05)
        attacks = {"PGD 0.1": PGD(0.1), "PGD 0.2": PGD(0.2)}
        found = evaluate(detector, clean[3000:3500], truth[3000:3500], attacks=attacks, noise=0.2)
        rows.append(found.assign(way=name))
    table = pd.concat(rows)
    table = table[table["positives"] == "all"]
    print("Attacks that are found at 5 % false alarms:\n")
    columns = ["way", "attack", "success", "auc", "tpr_at_5_fpr", "found", "false_alarms"]
    print(table[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
