"""A detector on the metrics of the later notebooks of Tuna, Catak and Eskil."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery.baselines._base import SupervisedBaseline
from leery.combiners import Facts, LogisticCombiner
from leery.metrics import Metric, PassUncertainty
from leery.models import device_of, forward, isolated, last_hidden_layer
from leery.observation import HEAD, Needs, Observation

__all__ = ["LaterMetrics"]

_WIDTH = 64
"""Number of units of each of the two hidden layers of the trained network."""

_EPOCHS = 30
_BATCH = 64


class LaterMetrics(SupervisedBaseline):
    """Logistic regression on four uncertainties and on the log odds of a small trained network.

    Needs a classifier with dropout. The network learns from the last hidden layer whether an image
    is adversarial. The network and the regression learn from the same attacks.

    Args:
        model: the classifier.
        settings: keyword arguments of :class:`leery.Detector`, such as ``passes``.

    Source:
        The later notebooks of Tuna, Catak and Eskil: aleatoric, epistemic and scibilic
        uncertainty, entropy, and a network's output, which they call a distance and do not
        describe.
        Departures: the widths and the training of the network are ours.
    """

    uncertainties: ClassVar = ("aleatoric", "epistemic", "scibilic", "predictive_entropy")

    def __init__(self, model: nn.Module, **settings: Any) -> None:  # noqa: ANN401 - those of Detector
        super().__init__(model, **settings)
        self._distance: _Distance | None = None

    def metrics_for(self, images: Tensor) -> Sequence[str | Metric]:
        """The four uncertainties, and the units of the last hidden layer."""
        layer = self._settings.get("feature_layer") or last_hidden_layer(self.model, images)
        with torch.no_grad(), isolated(self.model, images) as still:
            _, seen = forward(still, images.to(device_of(self.model)), [layer])
        units = seen[layer].flatten(1).shape[1]
        return [*map(PassUncertainty, self.uncertainties), *map(_Unit, range(units))]

    def fit_fusion(self, values: Tensor, predicted: Tensor, adversarial: Tensor) -> None:
        """Train the network of the distance, and fit the regression on its result."""
        self._distance = _Distance(values[:, len(self.uncertainties) :], adversarial)
        facts = [Facts.of(PassUncertainty(name)) for name in self.uncertainties]
        distance = Facts("learned_distance", "distance", "larger")
        self._combiner = LogisticCombiner([*facts, distance]).fit(
            self._with_distance(values).numpy(), predicted.numpy(), adversarial=adversarial.numpy()
        )

    def fused(self, values: Tensor, predicted: Tensor) -> Tensor:
        """The log odds of being adversarial of each row of metrics, float64 ``(N,)``."""
        return super().fused(self._with_distance(values), predicted)

    def _with_distance(self, values: Tensor) -> Tensor:
        """The uncertainties and the distance, float64 ``(N, 5)``; unchanged before the training."""
        if self._distance is None:
            return values
        uncertainties = values[:, : len(self.uncertainties)]
        return torch.cat([uncertainties, self._distance(values[:, len(self.uncertainties) :])], 1)


class _Unit(Metric):
    """The output of one unit of the last hidden layer."""

    family = "units"
    direction = "both"
    needs = Needs(layers=(HEAD,))

    def __init__(self, number: int) -> None:
        super().__init__()
        self.name = f"unit_{number}"
        self.number = number

    def forward(self, seen: Observation) -> Tensor:
        """The output for each image, float64 ``(N,)``."""
        return seen.layers[HEAD].flatten(1)[:, self.number].double()

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {"number": self.number}


class _Distance(nn.Module):
    """Log odds that an image is adversarial, by a small network that is trained on construction.

    Args:
        features: float64 ``(N, D)`` of clean, noisy and adversarial images.
        adversarial: bool ``(N,)``.
        seed: random seed of the weights and of the order of the images.
    """

    def __init__(self, features: Tensor, adversarial: Tensor, seed: int = 0) -> None:
        super().__init__()
        rows, truth = features.float(), adversarial.float()
        self.mean, self.scale = rows.mean(0), rows.std(0).clamp_min(1e-6)
        rows = (rows - self.mean) / self.scale
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = nn.Sequential(
                *(nn.Linear(rows.shape[1], _WIDTH), nn.ReLU()),
                *(nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 1)),
            )
            optimiser = torch.optim.Adam(self.network.parameters(), 1e-3)
            weight = (~adversarial).sum() / adversarial.sum()
            for _ in range(_EPOCHS):
                for part in torch.randperm(len(rows)).split(_BATCH):
                    odds = self.network(rows[part]).squeeze(1)
                    loss = functional.binary_cross_entropy_with_logits(
                        odds, truth[part], pos_weight=weight
                    )
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
        self.network.requires_grad_(requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """The log odds of each row, float64 ``(N, 1)``."""
        odds: Tensor = self.network((features.float() - self.mean) / self.scale)
        return odds.double()
