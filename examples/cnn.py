"""A convolutional network with batch norm and functional dropout, defended with adversarial images.

python examples/cnn.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery import Detector
from leery.attacks import BIM, FGSM, PGD, gaussian_noise
from leery.data import load
from leery.evaluation import evaluate


class Net(nn.Module):
    """Dropout is a function here; leery finds it in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3)
        self.first_norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, stride=2)
        self.second_norm = nn.BatchNorm2d(32)
        self.hidden = nn.Linear(32 * 36, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 10)`` of images ``(N, 1, 28, 28)``."""
        maps = functional.max_pool2d(functional.relu(self.first_norm(self.first(images))), 2)
        maps = functional.relu(self.second_norm(self.second(maps))).flatten(1)
        units = functional.dropout(functional.relu(self.hidden(maps)), 0.5, self.training)
        logits: Tensor = self.out(units)
        return logits


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
    """Train, fit, calibrate, evaluate.

    Args:
        count: of training images.
    """
    torch.manual_seed(0)
    images, labels = (part[:count] for part in load("mnist", "train"))
    clean, truth = load("mnist", "test")
    model = train(Net(), images, labels)

    detector = Detector(model, combiner="logistic").fit(images, labels)
    detector.fit_combiner(
        clean[:1000],
        truth[:1000],
        noisy=gaussian_noise(clean[:1000], 0.2),
        attacks=[FGSM(0.2), PGD(0.2)],
    )
    detector.calibrate(clean[1000:3000], fpr=0.05)
    print(detector.explain_plan(), "\n")

    attacks = {"FGSM 0.2": FGSM(0.2), "PGD 0.2": PGD(0.2), "BIM 0.3, not seen": BIM(0.3)}
    found = evaluate(detector, clean[3000:3500], truth[3000:3500], attacks=attacks, noise=0.2)
    columns = ["attack", "positives", "auc", "tpr_at_5_fpr", "found", "false_alarms"]
    print(found[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
