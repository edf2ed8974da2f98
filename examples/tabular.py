"""A classifier of tables: 64 measurements a row, standardised, no image anywhere.

python examples/tabular.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from leery import Detector
from leery.attacks import FGSM, PGD, gaussian_noise
from leery.evaluation import evaluate

BOUNDS = (-10.0, 10.0)


def table() -> tuple[Tensor, Tensor]:
    """Rows ``(1797, 64)``, standardised by the first 900, and their classes."""
    values, classes = load_digits(return_X_y=True)
    values = StandardScaler().fit(values[:900]).transform(values).clip(*BOUNDS)
    return torch.from_numpy(values).float(), torch.from_numpy(classes).long()


def train(model: nn.Module, rows: Tensor, labels: Tensor, *, epochs: int = 40) -> nn.Module:
    """Adam on cross-entropy."""
    optimiser = torch.optim.Adam(model.parameters())
    for _ in range(epochs):
        for part in torch.randperm(len(rows)).split(64):
            optimiser.zero_grad()
            functional.cross_entropy(model(rows[part]), labels[part]).backward()
            optimiser.step()
    return model.eval()


def main() -> None:
    """Train, fit, calibrate, evaluate; then explain one verdict."""
    torch.manual_seed(0)
    rows, labels = table()
    model = train(
        nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 64), nn.ReLU(),
            nn.Dropout(0.3), nn.Linear(64, 10),
        ),
        rows[:900],
        labels[:900],
    )  # fmt: skip

    detector = Detector(model, combiner="logistic", bounds=BOUNDS).fit(rows[:900], labels[:900])
    detector.fit_combiner(
        rows[900:1200],
        labels[900:1200],
        noisy=gaussian_noise(rows[900:1200], 0.3, bounds=BOUNDS),
        attacks=[FGSM(0.5, bounds=BOUNDS)],
    )
    detector.calibrate(rows[1200:1500], fpr=0.05)

    adversarial = PGD(0.5, bounds=BOUNDS)(model, rows[1500:1501], labels[1500:1501])
    shown = detector.explain(adversarial).to_pandas()
    print(shown[["metric", "value", "percentile", "contribution"]].round(3).to_string(index=False))
    print()
    attacks = {name: kind(0.5, bounds=BOUNDS) for name, kind in {"FGSM": FGSM, "PGD": PGD}.items()}
    found = evaluate(detector, rows[1500:], labels[1500:], attacks=attacks)
    columns = ["attack", "positives", "auc", "tpr_at_5_fpr", "found", "false_alarms"]
    print(found[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
