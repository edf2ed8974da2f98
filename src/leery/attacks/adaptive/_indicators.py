"""Signs that an attack has failed, not that the guard is strong."""

from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from leery._checks import bounds_like, clamp
from leery.attacks._gradient import PGD, GradientAttack, gradients_of
from leery.attacks._objectives import Objective
from leery.attacks.adaptive._objectives import Joint
from leery.attacks.adaptive._target import Target
from leery.models import device_of, isolated

__all__ = ["Indicators", "indicators"]

_DIRECTIONS = 100
"""Number of random directions in which the objective is tried."""

_RADIUS = 8 / 255
"""Length of the random directions in every pixel, as a fraction of the pixel range."""

_LAST = 10
"""Number of final steps in which the objective should hardly move."""

_MOST = {"zero": 0.05, "unstable": 0.1, "silent": 0.0, "moving": 0.05, "transfer": 0.03}
"""Largest value of each indicator of an attack that works."""

_LEAST_UNLIMITED = 0.95
"""Smallest success of a working attack without a limit on epsilon."""


@dataclass(frozen=True)
class Indicators:
    """Six signs that an attack has failed.

    Attributes:
        zero: fraction of the images whose gradient is zero or not finite at the first iterate.
        unstable: mean change of the objective around the clean image, in 100 random directions of
            8/255 of the pixel range, relative to the range of its values during the attack.
        silent: fraction of the images for which an iterate evaded the guard but the returned image
            does not.
        moving: fraction of the images whose objective moved, in the last ten steps, by more than
            0.05 of its range.
        transfer: success of an attack that does not know the score, minus that of the attack.
        unlimited: success without a limit on epsilon.

    Of an objective with several terms, the first one counts.

    Source:
        Pintor et al. (2022), arXiv:2106.09947. Departure: relative to the range of the objective,
        which may be 0 or negative.
    """

    zero: float
    unstable: float
    silent: float
    moving: float
    transfer: float
    unlimited: float

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the indicators that say that the attack has failed."""
        found = [name for name, most in _MOST.items() if not asdict(self)[name] <= most]
        return (*found, *(["unlimited"] if not self.unlimited >= _LEAST_UNLIMITED else []))


def indicators(
    target: Target, attack: GradientAttack, images: Tensor, labels: Tensor, *, seed: int = 0
) -> Indicators:
    """Run an attack on a few images and look for signs that it has failed.

    Args:
        target: the guarded classifier.
        attack: a gradient attack on it.
        images: clean images ``(N, ...)`` within the bounds that the classifier gets right.
        labels: int ``(N,)``, their true classes.
        seed: seed of the attack and of the directions.

    Raises:
        InputError: when images or labels do not fit.
    """
    whole = len(images)
    log = _Log(target)
    watched = replace(attack, objective=lambda model: _Watched(attack.objective(model), log))
    made = watched(target.model, images, labels, seed=seed, batch_size=whole)
    evaded = target.evaded_by(made, labels)
    values = torch.stack(log.values)
    span = (values.amax(0) - values.amin(0)).clamp_min(1e-12)
    last = values[-_LAST:]
    moved = (last.amax(0) - last.amin(0)) / span
    low, high = bounds_like(attack.bounds or (0.0, 1.0), images)
    width = float((high - low).max())
    reach = width * (images[0].numel() ** 0.5 if attack.norm == "l2" else 1.0)
    free = replace(attack, epsilon=reach, step_size=reach / 10)
    blind = PGD(
        attack.epsilon,
        norm=attack.norm,
        bounds=attack.bounds,
        objective=partial(Joint, helpers=target.helpers),
    )
    transferred = target.evaded_by(blind(target.model, images, labels, seed=seed), labels)
    unlimited = target.evaded_by(free(target.model, images, labels, seed=seed), labels)
    change = _changes(target, attack, images, labels, seed) / span.cpu()
    return Indicators(
        zero=_mean(log.zero),
        unstable=float(change.mean()),
        silent=_mean(log.evaded & ~evaded),
        moving=_mean(moved > 0.05),  # noqa: PLR2004 - Pintor et al.
        transfer=_mean(transferred) - _mean(evaded),
        unlimited=_mean(unlimited),
    )


def _mean(hits: Tensor) -> float:
    return float(hits.double().mean())


class _Log:
    """What is seen at each step of an attack."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.values: list[Tensor] = []
        self.zero = torch.zeros(1, dtype=torch.bool)
        self.evaded = torch.zeros(1, dtype=torch.bool)

    def add(self, objective: Objective, images: Tensor, labels: Tensor) -> None:
        """Look at an iterate."""
        values, gradients = gradients_of(objective, images, labels)
        if not self.values:
            length = gradients[0].flatten(1).norm(dim=1)
            self.zero = (~(length.isfinite() & (length > 0))).cpu()
        self.values.append((values[0] if values.ndim > 1 else values).cpu())
        self.evaded = self.evaded | self.target.evaded_by(images.detach(), labels)


class _Watched:
    """An objective whose iterates are logged."""

    def __init__(self, objective: Objective, log: _Log) -> None:
        self._objective, self._log = objective, log
        self.chooses = objective.chooses
        self.direction, self.better = objective.direction, objective.better

    def value(self, images: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The objective."""
        if torch.is_grad_enabled():
            self._log.add(self._objective, images, labels)
        return self._objective.value(images, labels)


@torch.no_grad()
def _changes(
    target: Target, attack: GradientAttack, images: Tensor, labels: Tensor, seed: int
) -> Tensor:
    """The mean change of the objective in random directions, ``(N,)``."""
    bounds = attack.bounds or (0.0, 1.0)
    low, high = bounds_like(bounds, images)
    drawn, place = torch.Generator().manual_seed(seed), device_of(target.model)
    with isolated(target.model, images) as still:
        objective = attack.objective(still)

        def first(points: Tensor) -> Tensor:
            values = objective.value(points.to(place), labels.to(place))
            return (values[0] if isinstance(values, tuple) else values).cpu()

        here = first(images)
        total = torch.zeros_like(here)
        for _ in range(_DIRECTIONS):
            sign = torch.randint(0, 2, images.shape, generator=drawn).to(images) * 2 - 1
            near = clamp(images + _RADIUS * (high - low).to(images) * sign, bounds)
            total += (first(near) - here).abs()
    return total / _DIRECTIONS
