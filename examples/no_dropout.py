"""A classifier that was made and trained without dropout: the two ways out, side by side.

python examples/no_dropout.py
"""

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from leery import Detector
from leery.attacks import PGD, gaussian_noise
from leery.data import load
from leery.errors import NoDropoutError
from leery.evaluation import evaluate
from leery.mc_dropout import insert_dropout


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
    """Train, then guard by closeness alone and with dropout put in.

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

    try:
        Detector(model).fit(images, labels)
    except NoDropoutError as error:
        print(error, "\n")

    ways = {
        "closeness alone": Detector(model, metrics=["kernel_density", "kl_divergence"]),
        "dropout put in": Detector(insert_dropout(model, before="7", p=0.3)),
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
    columns = ["way", "attack", "success", "auc", "tpr_at_5_fpr", "found", "false_alarms"]
    print(table[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
