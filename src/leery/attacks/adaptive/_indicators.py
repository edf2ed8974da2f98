"""Signs that an attack has failed, not that the guard is strong."""

from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from leery._checks import bounds_like, clamp
from leery.attacks._gradient import PGD, GradientAttack, gradients_of
from leery.attacks._objectives import Objective
from leery.attacks.adaptive._objectives import Joint, margin, with_gradient
from leery.attacks.adaptive._target import Target
from leery.errors import InputError
from leery.models import device_of, isolated, run_fast

__all__ = ["Indicators", "indicators"]

_DIRECTIONS = 100
"""Number of random directions in which the objective is tried."""

_RADIUS = 8 / 255
"""Length of the random directions in every pixel, as a fraction of the pixel range."""

_LAST = 10
"""Number of final steps in which margin and excess should hardly improve."""

_MOVED = 0.05
"""Fraction of its range by which a value moves if it still improves."""

_MOST = {"zero": 0.05, "unstable": 0.1, "silent": 0.0, "moving": 0.05, "transfer": 0.03}
"""Largest value of each indicator of an attack that works."""

_LARGEST = 1e100
"""Largest size of an excess, in place of an infinite one."""

_LEAST_UNLIMITED = 0.95
"""Smallest success of a working attack without a limit on epsilon."""


@dataclass(frozen=True)
class Indicators:
    """Six signs that an attack has failed.

    Two values are looked at apart: the margin, which is the largest other logit minus that of the
    true class, and the excess of the score.

    Attributes:
        zero: fraction of the images whose step is zero at the first iterate, or for which the
            gradient of margin or excess is not finite there; images that evade the guard there are
            left out.
        unstable: change of a value around the clean image, in 100 random directions of 8/255 of the
            pixel range, relative to the range of the value during the attack: the median over the
            images, of margin or excess, whichever is larger.
        silent: fraction of the images for which an iterate evaded the guard but the returned image
            does not.
        moving: fraction of the images that do not evade the guard and whose best value so far (the
            margin or, once the class is wrong, the excess) improved in the last ten steps by more
            than 0.05 of its range.
        transfer: success of an attack that does not know the score, minus that of the attack.
        unlimited: success without a limit on epsilon.

    Source:
        Pintor et al. (2022), arXiv:2106.09947. Departure: relative to the range of the values,
        which may be 0 or negative; medians, because ranges may be small.
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
        attack: an attack on it along gradients, with an epsilon above 0.
        images: clean images ``(N, ...)`` within the bounds that the classifier gets right.
        labels: int ``(N,)``, their true classes.
        seed: seed of the attack and of the directions.

    Raises:
        InputError: when images or labels do not fit, or the attack uses no gradient.
    """
    whole = len(images)
    log = _Log(target)
    watched = replace(attack, objective=lambda model: _Watched(attack.objective(model), model, log))
    made = watched(target.model, images, labels, seed=seed, batch_size=whole)
    if not log.values:
        name, epsilon = type(attack).__name__, attack.epsilon
        message = (
            "expected an attack along gradients with an epsilon above 0, got "
            f"{name} with {epsilon:g}; choose another attack or epsilon"
        )
        raise InputError(message)
    evaded = target.evaded_by(made, labels)
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
    changes = _changes(target, attack, images, labels, seed)
    return Indicators(
        zero=_mean(log.zero[~log.first]),
        unstable=max(_typical(change, log.span(at)) for at, change in enumerate(changes)),
        silent=_mean(log.evaded & ~evaded),
        moving=_mean(log.moving() & ~evaded),
        transfer=_mean(transferred) - _mean(evaded),
        unlimited=_mean(unlimited),
    )


def _mean(hits: Tensor) -> float:
    return float(hits.double().mean()) if len(hits) else 0.0


def _typical(change: Tensor, span: Tensor) -> float:
    """The median relative change, without values that never moved."""
    moved = span > 0
    return float((change[moved] / span[moved]).median()) if bool(moved.any()) else 0.0


def _two_values(target: Target, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Margin and minus the excess, which attacks raise, float64 ``(2, N)``, on the CPU."""
    with torch.no_grad():
        own = margin(run_fast(model, images), labels).double()
        calm = -target.excess(images).double().clamp(-_LARGEST, _LARGEST)
    return torch.stack([own.cpu(), calm.cpu()])


def _finite_gradients(target: Target, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Whether the gradients of margin and excess are finite, bool ``(N,)``."""
    variable = images.detach().requires_grad_()
    excess = with_gradient(target.excess(variable), variable)
    values = margin(run_fast(model, variable), labels), excess
    found = [
        torch.autograd.grad(value.sum(), variable, allow_unused=True, materialize_grads=True)[0]
        for value in values
    ]
    return torch.stack(found).isfinite().transpose(0, 1).flatten(1).all(1)


class _Log:
    """What is seen at each step of an attack."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.values: list[Tensor] = []
        self.zero = self.first = self.evaded = torch.zeros(1, dtype=torch.bool)

    def add(self, objective: Objective, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Look at an iterate."""
        evaded = self.target.evaded_by(images.detach(), labels)
        if not self.values:
            _, gradients = gradients_of(objective, images, labels)
            length = objective.direction(gradients).flatten(1).norm(dim=1)
            working = (length > 0) & _finite_gradients(self.target, model, images, labels)
            self.zero, self.first = (~working).cpu(), evaded
        self.values.append(_two_values(self.target, model, images, labels))
        self.evaded = self.evaded | evaded

    def span(self, at: int) -> Tensor:
        """The range of margin (0) or excess (1) during the attack, ``(N,)``."""
        seen = torch.stack(self.values)[:, at]
        return seen.amax(0) - seen.amin(0)

    def moving(self) -> Tensor:
        """Whether the best value so far improved in the last steps, bool ``(N,)``."""
        margins, calm = torch.stack(self.values, 1)
        wrong = margins > 0
        # Of the excess, only what counts: of iterates with a wrong class.
        reached = torch.where(wrong, calm, calm.amin(0)).cummax(0).values
        best, span = torch.where(
            wrong.any(0),
            torch.stack([reached[-1] - reached[-1 - _LAST :][0], self.span(1)]),
            torch.stack(
                [margins.amax(0) - margins.cummax(0).values[-1 - _LAST :][0], self.span(0)]
            ),
        )
        moved: Tensor = best > _MOVED * span
        return moved


class _Watched:
    """An objective whose iterates are logged."""

    def __init__(self, objective: Objective, model: nn.Module, log: _Log) -> None:
        self._objective, self._model, self._log = objective, model, log
        self.chooses = objective.chooses
        self.direction, self.better = objective.direction, objective.better

    def value(self, images: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The objective."""
        if torch.is_grad_enabled():
            self._log.add(self._objective, self._model, images, labels)
        return self._objective.value(images, labels)


@torch.no_grad()
def _changes(
    target: Target, attack: GradientAttack, images: Tensor, labels: Tensor, seed: int
) -> Tensor:
    """The mean change of margin and excess in random directions, ``(2, N)``."""
    bounds = attack.bounds or (0.0, 1.0)
    low, high = bounds_like(bounds, images)
    drawn, place = torch.Generator().manual_seed(seed), device_of(target.model)
    with isolated(target.model, images) as still:

        def values(points: Tensor) -> Tensor:
            return _two_values(target, still, points.to(place), labels.to(place))

        here = values(images)
        total = torch.zeros_like(here)
        for _ in range(_DIRECTIONS):
            sign = torch.randint(0, 2, images.shape, generator=drawn).to(images) * 2 - 1
            near = clamp(images + _RADIUS * (high - low).to(images) * sign, bounds)
            total += (values(near) - here).abs()
    return total / _DIRECTIONS
