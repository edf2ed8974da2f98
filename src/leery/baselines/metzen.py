"""A detector subnetwork on a hidden layer, of Metzen et al."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from leery._checks import Bounds, check_count
from leery.baselines._base import Labelled, training_versions
from leery.errors import NotFittedError
from leery.models import device_of, forward, isolated, submodules_of_images
from leery.tuning import WHOLE_MODEL

__all__ = ["DetectorSubnetwork"]

_HALF = 32
"""Number of adversarial images, and of clean or noisy ones, in a training step."""


class DetectorSubnetwork:
    """Log odds that an image is adversarial, by a convolutional network on a hidden layer.

    Args:
        model: the classifier.
        layer: name of a layer with outputs ``(N, channels, height, width)``; by default the first
            one whose feature maps have at most a quarter of the spatial positions of the
            classifier's first feature maps, else the last layer with feature maps; the middle layer
            if no layer has any.
        steps: number of training steps, each on 32 adversarial images and 32 clean or noisy ones.
        seed: random seed of the network's weights and of the choice of the images.
        bounds: pixel bounds of the noise and of attacks that have none.

    Attributes:
        model: the classifier.
        learns_from_attacks: True, because :meth:`fit` needs attacks.
        differentiable: True, because :meth:`differentiable_score` is exact.

    Source:
        Metzen et al. (2017), arXiv:1702.04267. Departures: half of the channels of its figure 1 and
        one pooling layer, a learning rate of 1e-3 and fewer steps, held-out images instead of the
        training set, noisy images among the clean ones, and the choice of the layer.
    """

    learns_from_attacks: ClassVar[bool] = True
    differentiable: bool = True

    def __init__(
        self,
        model: nn.Module,
        *,
        layer: str | None = None,
        steps: int = 400,
        seed: int = 0,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        self.model = model
        self._layer = layer
        self._steps = check_count(steps, "steps")
        self._seed, self._bounds = seed, bounds
        self._network: nn.Sequential | None = None

    def fit(
        self,
        train: Labelled,
        clean: Labelled | None = None,
        attacks: Sequence[Callable[..., Tensor]] = (),
    ) -> Self:
        """Train the network on clean images, their noisy versions and successful attacks on them.

        Args:
            train: training images; only the first two are used, to find the layer.
            clean: labelled images, which are attacked.
            attacks: attacks, at least one.

        Raises:
            InputError: when clean images or attacks are missing, or no attack succeeds.
        """
        images, _ = train
        self._layer = self._layer or self._found(images[:2])
        versions = training_versions(self.model, clean, attacks, bounds=self._bounds)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            self._train(torch.cat(versions[:2]), versions[2])
        return self

    def score(self, images: Tensor) -> np.ndarray:
        """The log odds of each image, float64 ``(N,)``.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        device = device_of(self.model)
        with torch.no_grad():
            parts = [
                self.differentiable_score(batch.to(device)).cpu()
                for batch in images.split(WHOLE_MODEL)
            ]
        scores: np.ndarray = torch.cat(parts).numpy()
        return scores

    def differentiable_score(self, images: Tensor) -> Tensor:
        """The log odds of each image, float64 ``(N,)``, with gradients to the images.

        Raises:
            NotFittedError: before :meth:`fit`.
        """
        if self._network is None:
            message = "expected a fitted DetectorSubnetwork, got an unfitted one; call fit"
            raise NotFittedError(message)
        return _odds(self._network, self._hidden(images)).double()

    def _found(self, images: Tensor) -> str:
        """The default layer, as the class describes it."""
        names = submodules_of_images(self.model, images)
        with torch.no_grad(), isolated(self.model, images) as still:
            _, seen = forward(still, images.to(device_of(self.model)), names)
        maps = [name for name in names if seen[name].ndim == 4]  # noqa: PLR2004 - positions
        if not maps:
            return names[len(names) // 2]
        positions = {name: seen[name][0, 0].numel() for name in maps}
        few = [name for name in maps if 4 * positions[name] <= positions[maps[0]]]
        return few[0] if few else maps[-1]

    def _hidden(self, images: Tensor) -> Tensor:
        """The layer's output ``(N, channels, height, width)``; vectors become 1 x 1 maps."""
        assert self._layer is not None
        with isolated(self.model, images) as still:
            _, seen = forward(still, images, [self._layer])
        values = seen[self._layer]
        return values if values.ndim == 4 else values.flatten(1)[:, :, None, None]  # noqa: PLR2004

    def _train(self, others: Tensor, adversarial: Tensor) -> None:
        device = device_of(self.model)
        with torch.no_grad():
            width = self._hidden(others[:1].to(device)).shape[1]
        network = _subnetwork(width).to(device).train()
        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        truth = torch.arange(2, device=device).repeat_interleave(_HALF).float()
        for _ in range(self._steps):
            drawn = [part[torch.randint(len(part), (_HALF,))] for part in (others, adversarial)]
            with torch.no_grad():
                hidden = self._hidden(torch.cat(drawn).to(device))
            odds = _odds(network, hidden)
            loss = functional.binary_cross_entropy_with_logits(odds, truth)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self._network = network.eval().requires_grad_(requires_grad=False)


def _subnetwork(channels: int) -> nn.Sequential:
    """Three convolutions, and one that gives the log odds at each position."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
        nn.MaxPool2d(2, ceil_mode=True),
        *(nn.Conv2d(48, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU()),
        *(nn.Conv2d(96, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU()),
        nn.Conv2d(96, 1, 1),
    )


def _odds(network: nn.Module, hidden: Tensor) -> Tensor:
    """The mean log odds over all positions, ``(N,)``."""
    odds: Tensor = network(hidden).mean((1, 2, 3))
    return odds
