"""A small vision transformer with dropout in attention and stochastic depth; clean data alone.

python examples/transformer.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery import PAPER_METRICS, Detector
from leery.attacks import PGD, gaussian_noise
from leery.data import load
from leery.evaluation import evaluate


class DropPath(nn.Module):
    """Stochastic depth: a block is left out at random, image by image."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, hidden: Tensor) -> Tensor:
        """Like ``hidden``, or zeros."""
        if not self.training:
            return hidden
        keep = 1 - self.rate
        kept = hidden.new_empty((hidden.shape[0], 1, 1)).bernoulli_(keep)
        return hidden * kept / keep


class Block(nn.Module):
    """Attention and a perceptron, each with a way around it."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, rate
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(rate), nn.Linear(2 * width, width)
        )
        self.path = DropPath(rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """Like ``tokens`` ``(N, L, D)``."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.first_norm(tokens)).chunk(3, dim=-1)
        )
        rate = self.rate if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        tokens = tokens + self.path(self.mix(mixed.transpose(1, 2).flatten(2)))
        out: Tensor = tokens + self.path(self.perceptron(self.second_norm(tokens)))
        return out


class VisionTransformer(nn.Module):
    """Patches of 7 x 7 pixels are the tokens."""

    def __init__(self, width: int = 48, rate: float = 0.1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, stride=7)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.Sequential(*(Block(width, 4, rate) for _ in range(3)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 10)`` of images ``(N, 1, 28, 28)``."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int = 6) -> nn.Module:
    """Adam on cross-entropy."""
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
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
    model = train(VisionTransformer(), images, labels)

    detector = Detector(model, passes=20, metrics=PAPER_METRICS).fit(images, labels)
    detector.fit_combiner(clean[:1000], noisy=gaussian_noise(clean[:1000], 0.1))
    detector.calibrate(clean[1000:2000], fpr=0.05, promise="pac")
    print(detector.explain_plan(), "\n")

    attacks = {"PGD 0.1": PGD(0.1), "PGD 0.3": PGD(0.3)}
    found = evaluate(detector, clean[3000:3300], truth[3000:3300], attacks=attacks, noise=0.1)
    columns = ["attack", "positives", "auc", "tpr_at_5_fpr", "found", "false_alarms"]
    print(found[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
