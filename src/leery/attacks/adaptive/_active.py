"""The active test: an attack must find adversarial examples that were planted."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from leery._checks import Bounds, check_bounds, check_count, clamp
from leery.attacks._gradient import Attack
from leery.attacks.adaptive._target import Target
from leery.errors import InputError
from leery.models import device_of, extract_features, forward, last_hidden_layer

__all__ = ["ActiveTest", "active_test"]

_REDRAWS = 10
"""How often a boundary point is drawn until the detector decides on it as it should."""

_INNER = 0.95
"""Largest distance of the inner points, as a fraction of epsilon."""

_AT_ONCE = 64
"""Number of images attacked at once."""


@dataclass(frozen=True)
class ActiveTest:
    """Results of an active test.

    Attributes:
        planted: number of images beside which an adversarial example was planted.
        found: fraction of them for which the attack found one; a working attack finds at least
            0.95.
        by_chance: fraction of the images for which one of the random points of the ball is
            adversarial; if it is above 0.1, the test is too easy to mean anything.
    """

    planted: int
    found: float
    by_chance: float


def active_test(
    target: Target,
    attack: Callable[[Target], Attack],
    images: Tensor,
    *,
    epsilon: float,
    inverted: bool = False,
    inner_points: int = 999,
    random_points: int = 200,
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
) -> ActiveTest:
    """Plant adversarial examples, and count those that an attack finds.

    Beside each image that the guard accepts, a point at distance epsilon is drawn that it accepts,
    too. A logistic regression on the classifier's features tells this point from the image and from
    random points within 0.95 epsilon, and takes the place of the classifier's last layer; the
    detector stays as it is. An accepted point of the other class then exists (images for which the
    regression does not separate are left out). An attack that finds none is broken, whatever it
    reports about the guard.

    Args:
        target: the guarded classifier.
        attack: makes the attack on the guard with the planted classifier. Each image has a last
            layer of its own: the attack must pass each call's images to the model in one batch and
            in order, for up to 64 images.
        images: float ``(N, ...)`` within the bounds.
        epsilon: L-infinity radius.
        inverted: True to plant points that are flagged, and to attack with the sign of the excess
            reversed: an attack that ignores the score fails.
        inner_points: number of random points per image that the regression is fitted to.
        random_points: number of random points per image that are tried instead of the attack.
        bounds: lowest and highest pixel value, or a pair per channel.
        seed: seed of the points and of the attack.

    Raises:
        InputError: when a setting is outside its range, or no point could be planted beside any
            image.

    Source:
        Zimmermann et al. (2022), arXiv:2206.13991; the inverted test is theirs for detectors.
    """
    check_count(inner_points, "inner points")
    check_count(random_points, "random points")
    check_bounds(images, bounds)
    kept = images[~(target.judge(images)[1] > 0)]
    plant = _Planting(
        _reversed(target) if inverted else target, epsilon, bounds, inner_points, seed
    )
    found, lucky = [], []
    for batch in kept.split(_AT_ONCE):
        origin, planted = plant.beside(batch)
        if not len(origin):
            continue
        inner_class = torch.zeros(len(origin), dtype=torch.int64)
        made = attack(planted)(planted.model, origin, inner_class, seed=seed)
        found.append(planted.evaded_by(made, inner_class))
        by_chance = torch.zeros(len(origin), dtype=torch.bool)
        for _ in range(random_points):
            by_chance |= planted.evaded_by(plant.drawn(origin, epsilon), inner_class)
        lucky.append(by_chance)
    if not found:
        message = (
            "expected points that the detector decides on as the test needs, got none within "
            f"epsilon {epsilon:g}; choose another epsilon"
        )
        raise InputError(message)
    hits = torch.cat(found)
    return ActiveTest(
        len(hits), float(hits.double().mean()), float(torch.cat(lucky).double().mean())
    )


def _reversed(target: Target) -> Target:
    """A target that wants what the detector flags."""

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        classes, excess = target.judge(images)
        return classes, -excess

    return Target(target.model, lambda images: -target.excess(images), judge)


class _Planting:
    """Draws points, and replaces the classifier by one that tells them from others."""

    def __init__(
        self, target: Target, epsilon: float, bounds: Bounds, inner_points: int, seed: int
    ) -> None:
        self._target, self._epsilon, self._bounds = target, epsilon, bounds
        self._inner_points = inner_points
        self._generator = torch.Generator().manual_seed(seed)
        # A copy, because the planted classifiers are put into eval mode for good.
        self._model = copy.deepcopy(target.model)

    def drawn(self, images: Tensor, radius: float) -> Tensor:
        """A random point within the radius of each image."""
        return clamp(images + radius * self._uniform(images), self._bounds)

    def beside(self, images: Tensor) -> tuple[Tensor, Target]:
        """The images beside which a point was planted, and the guard with the new classifier."""
        target = self._target
        points, known = self._boundary(images)
        layer = last_hidden_layer(target.model, images[:2])
        heads = [
            self._separating(layer, image, point)
            for image, point in zip(images[known], points[known], strict=True)
        ]
        if not heads:
            return images[known], target
        # Features of few dimensions may not tell the point from all others.
        near, far = images[known], points[known]
        inner_class = torch.zeros(len(near), dtype=torch.int64)
        told = ~self._as_planted(heads, layer).evaded_by(near, inner_class)
        told &= self._as_planted(heads, layer).evaded_by(far, inner_class)
        kept = [head for head, good in zip(heads, told.tolist(), strict=True) if good]
        return near[told], self._as_planted(kept, layer) if kept else target

    def _as_planted(self, heads: list[tuple[Tensor, Tensor]], layer: str) -> Target:
        """The guard with a classifier of these last layers."""
        target = self._target
        model = _PlantedModel(self._model, layer, heads).eval()

        def judge(tried: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                return model(tried.to(model.biases.device)).argmax(1).cpu(), target.judge(tried)[1]

        return Target(model, target.excess, judge, (model,), target.apart)

    def _uniform(self, images: Tensor) -> Tensor:
        drawn = torch.rand(images.shape, generator=self._generator, dtype=images.dtype)
        return 2 * drawn.to(images.device) - 1

    def _boundary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """A corner of each image's ball that is accepted, and for which images one was drawn."""
        points, known = images.clone(), torch.zeros(len(images), dtype=torch.bool)
        for _ in range(_REDRAWS):
            tried = clamp(images + self._epsilon * self._uniform(images).sign(), self._bounds)
            new = ~known & ~(self._target.judge(tried)[1] > 0)
            points[new], known = tried[new], known | new
        return points, known

    def _separating(self, layer: str, image: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and bias of the logistic regression that tells a point from those inside."""
        many = image.expand(self._inner_points, *image.shape)
        near = self.drawn(many, _INNER * self._epsilon)
        rows = torch.cat([near, image.unsqueeze(0), point.unsqueeze(0)])
        features = extract_features(self._target.model, rows, layer)[0].cpu()
        truth = np.zeros(len(rows), dtype=np.int64)
        truth[-1] = 1
        scale = features.std(0).clamp_min(1e-6)
        fitted = LogisticRegression(C=np.inf, max_iter=2000)
        fitted.fit((features / scale).numpy(), truth)
        weight = torch.from_numpy(fitted.coef_[0]).float() / scale
        return weight, torch.tensor(float(fitted.intercept_[0]))


class _PlantedModel(nn.Module):
    """The classifier with a last layer of its own for each image, which separates two classes."""

    weights: Tensor
    biases: Tensor

    def __init__(self, model: nn.Module, layer: str, heads: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.model, self._layer = model, layer
        place = device_of(model)
        self.register_buffer("weights", torch.stack([weight for weight, _ in heads]).to(place))
        self.register_buffer("biases", torch.stack([bias for _, bias in heads]).to(place))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 2)`` of as many images as there are last layers, or of the first of them."""
        _, seen = forward(self.model, images, [self._layer])
        features, count = seen[self._layer].flatten(1), len(images)
        margins = (features * self.weights[:count]).sum(1) + self.biases[:count]
        return torch.stack([-margins / 2, margins / 2], 1)
