"""A detector on the metrics of the later notebooks of Tuna, Catak and Eskil."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery.baselines._base import SupervisedBaseline
from leery.metrics import Metric, PassUncertainty
from leery.observation import HEAD, Needs, Observation

__all__ = ["LaterMetrics", "LearnedDistance"]


class LearnedDistance(Metric):
    """Log odds that an image is adversarial, by a small network on its features.

    Before :meth:`train_network` it is 0.

    Args:
        width: number of units of each of its two hidden layers.
        epochs: number of passes over the images that it is trained on.
        seed: random seed of its weights and of the order of the images.

    Source:
        The "distance" of the authors' later notebooks, whose network is not described there.
        Departures: its widths and training are ours.
    """

    name = "learned_distance"
    family = "distance"
    direction = "larger"
    needs = Needs(layers=(HEAD,))

    def __init__(self, width: int = 64, *, epochs: int = 30, seed: int = 0) -> None:
        super().__init__()
        self.width, self.epochs, self.seed = width, epochs, seed
        self.network: nn.Sequential | None = None
        self.mean: Tensor | None = None
        self.scale: Tensor | None = None

    def train_network(self, features: Tensor, adversarial: Tensor) -> Self:
        """Train the network.

        Args:
            features: float ``(N, D)`` of clean, noisy and adversarial images.
            adversarial: bool ``(N,)``.
        """
        rows, truth = features.detach().float(), adversarial.float()
        self.mean, self.scale = rows.mean(0), rows.std(0).clamp_min(1e-6)
        rows = (rows - self.mean) / self.scale
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.network = nn.Sequential(
                *(nn.Linear(rows.shape[1], self.width), nn.ReLU()),
                *(nn.Linear(self.width, self.width), nn.ReLU(), nn.Linear(self.width, 1)),
            )
            optimiser = torch.optim.Adam(self.network.parameters(), 1e-3)
            weight = (~adversarial).sum() / adversarial.sum()
            for _ in range(self.epochs):
                for part in torch.randperm(len(rows)).split(64):
                    odds = self.network(rows[part]).squeeze(1)
                    loss = functional.binary_cross_entropy_with_logits(
                        odds, truth[part], pos_weight=weight
                    )
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
        self.network.requires_grad_(requires_grad=False)
        return self

    def forward(self, seen: Observation) -> Tensor:
        """The log odds of each image, float64 ``(N,)``."""
        features = seen.layers[HEAD].flatten(1).float()
        if self.network is None or self.mean is None or self.scale is None:
            return features.new_zeros(len(features), dtype=torch.float64)
        odds: Tensor = self.network((features - self.mean) / self.scale)
        return odds.squeeze(1).double()

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {"width": self.width, "epochs": self.epochs, "seed": self.seed}


class LaterMetrics(SupervisedBaseline):
    """Logistic regression on four uncertainties and the distance that a trained network gives.

    Needs a classifier with dropout. The network and the regression learn from the same attacks.

    Args:
        model: the classifier.
        settings: keyword arguments of :class:`leery.Detector`, such as ``passes``.

    Source:
        The later notebooks of Tuna, Catak and Eskil: aleatoric, epistemic and scibilic
        uncertainty, entropy, and the distance of a network.
    """

    metrics_learn: ClassVar[bool] = True
    uncertainties: ClassVar = ("aleatoric", "epistemic", "scibilic", "predictive_entropy")

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """The four uncertainties and the distance."""
        del images
        return [*map(PassUncertainty, self.uncertainties), LearnedDistance()]

    def prepare(self, versions: Sequence[Tensor], adversarial: Tensor) -> None:
        """Train the network of the distance."""
        distance = self._fitted.metrics_[LearnedDistance.name]
        assert isinstance(distance, LearnedDistance)
        features = torch.cat([self._fitted.features(images)[0] for images in versions])
        distance.train_network(features, adversarial)
