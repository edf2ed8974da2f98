"""The smallest L2 change that is misclassified and not flagged."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from leery._checks import (
    Bounds,
    bounds_like,
    check_batch_size,
    check_bound_values,
    check_bounds,
    check_count,
    check_images,
    check_labels,
    clamp,
)
from leery.attacks.adaptive._objectives import apart, margin
from leery.attacks.adaptive._target import Excess
from leery.errors import InputError
from leery.models import device_of, isolated, run_fast

__all__ = ["CarliniWagner", "SmallestEvasion"]

_SMOOTHING = 0.9
"""Weight of the past in the averages of multipliers, squared gradients and motion."""

_EVERY = 10
"""Number of steps after which a penalty may grow."""

_SHRINKS = 0.95
"""A constraint makes progress if it falls below this fraction of its last value."""

_GROWTH = 1.2
_MULTIPLIERS = (1e-6, 1e12)
_LAST_RATE = 0.01
"""The last step size as a fraction of the first."""

_LARGEST = 1e9
"""Largest size of an excess."""

_INSIDE = 1 - 1e-6
"""Fraction of the pixel range that images are shrunk to before the inverse of tanh is taken."""


@dataclass(frozen=True)
class _SmallestL2:
    """An attack without a ball; of the images that evade the guard, the nearest one is returned.

    Args:
        excess: the detector's excess; None to attack the classifier alone.
        steps: number of gradient steps.
        bounds: lowest and highest pixel value, or a pair per channel; by default (0, 1).
    """

    excess: Excess | None = None
    steps: int = field(default=1000, kw_only=True)
    bounds: Bounds | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Raise if a setting is outside its range."""
        check_count(self.steps, "steps")
        if self.bounds is not None:
            object.__setattr__(self, "bounds", check_bound_values(self.bounds))

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        batch_size: int = 256,
    ) -> Tensor:
        """The nearest evading image that was found for each image; the clean one where none was.

        Args:
            model: returns logits ``(N, classes)``.
            images: float ``(N, ...)`` within the bounds, on any device.
            labels: int ``(N,)``, the true classes.
            seed: has no effect; the attack is deterministic.
            batch_size: number of images attacked at once.

        Raises:
            InputError: when images or labels do not fit.
        """
        del seed
        check_images(images, floating=True)
        check_labels(labels, len(images))
        check_batch_size(batch_size)
        bounds = self.bounds or (0.0, 1.0)
        check_bounds(images, bounds)
        clean, place = images.detach(), device_of(model)
        with isolated(model, clean) as still, torch.inference_mode(mode=False), torch.enable_grad():
            found = []
            for batch, truth in zip(clean.split(batch_size), labels.split(batch_size), strict=True):
                own = batch.to(place, copy=True), truth.to(place, torch.int64, copy=True)
                search = _Search(still, self.excess, bounds, *own)
                self.descend(search)
                found.append(search.best.to(images.device))
        return torch.cat(found)

    def descend(self, search: "_Search") -> None:
        """Offer images to the search."""
        raise NotImplementedError


class _Search:
    """A batch of images, and the nearest images that evade the guard so far."""

    def __init__(
        self,
        model: nn.Module,
        excess: Excess | None,
        bounds: Bounds,
        images: Tensor,
        labels: Tensor,
    ) -> None:
        self.model, self.excess, self.bounds = model, excess, bounds
        # In half precision the small numbers of the descent would be 0.
        self.images, self.labels = images.to(_at_least_single(images.dtype)), labels
        low, high = bounds_like(bounds, images)
        self.low, self.high = low.to(self.images), high.to(self.images)
        self.span = (self.high - self.low).max()
        self.best = images.clone()
        self.smallest = self.images.new_full((len(images),), torch.inf)

    def shaped(self, values: Tensor) -> Tensor:
        """``(N,)`` shaped to broadcast over the images."""
        return values.view(-1, *(1 for _ in self.images.shape[1:]))

    def terms(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the excess, 0 for an unguarded classifier, ``(N,)``."""
        seen = images.to(self.best.dtype)
        logits = run_fast(self.model, apart(seen))
        logits = logits.to(_at_least_single(logits.dtype))
        if self.excess is None:
            return logits, torch.zeros_like(logits[:, 0])
        # The penalty of an infinite excess would not be a number.
        return logits, self.excess(apart(seen)).clamp(-_LARGEST, _LARGEST).to(logits.dtype)

    def offer(
        self, images: Tensor, logits: Tensor, excess: Tensor, confidence: float = 0.0
    ) -> Tensor:
        """Keep the images that evade the guard and are nearer; return which ones evade it."""
        with torch.no_grad():
            met = (margin(logits, self.labels) > confidence) & (excess <= 0)
            distance = (images - self.images).flatten(1).norm(dim=1)
            nearer = met & (distance < self.smallest)
            self.smallest = torch.where(nearer, distance, self.smallest)
            kept = images.detach().to(self.best.dtype)
            self.best = torch.where(self.shaped(nearer), kept, self.best)
        return met


def _at_least_single(kind: torch.dtype) -> torch.dtype:
    return torch.promote_types(kind, torch.float32)


class SmallestEvasion(_SmallestL2):
    r"""The smallest change in L2 that is misclassified and not flagged, without weights to choose.

    .. math:: \min_x \|x - x_0\|_2 \quad \text{so that} \quad m(x) > 0, \quad g(x) - t \le 0

    with m, the lead of the largest other logit over that of the true class as a fraction of the
    range of the three largest logits (of two classes: in logits), and the detector's excess g - t.
    Both constraints enter as penalties whose multipliers follow from the augmented Lagrangian
    method.

    Source:
        Rony et al. (2021), arXiv:2011.11857 (ALMA). Departure: the second constraint.
    """

    def descend(self, search: _Search) -> None:
        """Descend with RMSProp and momentum."""
        images = search.images
        state = _Multipliers(images.new_ones(1 if search.excess is None else 2, len(images)))
        change, motion = torch.zeros_like(images), torch.zeros_like(images)
        squares = torch.ones_like(images)
        # The change is a fraction of the pixel range, so that step sizes suit any range.
        for step in range(self.steps):
            change.requires_grad_()
            logits, excess = search.terms(images + search.span * change)
            met = search.offer(images + search.span * change.detach(), logits, excess)
            constraints = _constraints(logits, search.labels, excess)[: len(state.values)]
            state.update(step, constraints.detach(), met)
            # The gradient of a norm at 0 is not a number.
            distance = (change.flatten(1) ** 2).sum(1).clamp_min(1e-24).sqrt()
            loss = _penalty(constraints, state.growth, state.values).sum()
            gradient = torch.autograd.grad(loss + distance.sum() if step else loss, change)[0]
            squares = _SMOOTHING * squares + (1 - _SMOOTHING) * gradient**2
            motion = _SMOOTHING * motion + gradient / (squares.sqrt() + 1e-8)
            rate = 0.1 * state.rate(step, self.steps)
            moved = change.detach() - search.shaped(rate) * motion
            change = (clamp(images + search.span * moved, search.bounds) - images) / search.span
        with torch.no_grad():
            last = clamp(images + search.span * change, search.bounds)
            search.offer(last, *search.terms(last))


class _Multipliers:
    """The multipliers of the constraints, ``(K, N)``, and how fast their penalties grow."""

    def __init__(self, ones: Tensor) -> None:
        self.values, self.growth = ones, ones.clone()
        self._before = torch.full_like(ones, torch.inf)
        self._found_at = torch.full_like(ones[0], torch.inf)

    def update(self, step: int, constraints: Tensor, met: Tensor) -> None:
        """Follow the constraints; let the penalties of those without progress grow now and then."""
        self._found_at = torch.where(met & self._found_at.isinf(), step, self._found_at)
        if step:
            slope = _slope(constraints, self.growth, self.values)
            smooth = _SMOOTHING * self.values + (1 - _SMOOTHING) * slope
            self.values = smooth.clamp(*_MULTIPLIERS)
        if step % _EVERY == 0:
            stuck = (constraints > 0) & (constraints > _SHRINKS * self._before)
            self.growth = torch.where(stuck, _GROWTH * self.growth, self.growth)
            self._before = constraints

    def rate(self, step: int, steps: int) -> Tensor:
        """The step size as a fraction of the first; it falls once an evasion was found."""
        since = (step - self._found_at).clamp_min(0)
        left = (steps - self._found_at).clamp_min(1)
        fallen: Tensor = _LAST_RATE ** (since / left)
        return torch.where(self._found_at.isinf(), torch.ones_like(since), fallen)


def _constraints(logits: Tensor, labels: Tensor, excess: Tensor) -> Tensor:
    """Both constraints, ``(2, N)``, met where they are below 0."""
    largest = logits.topk(min(3, logits.shape[1]), dim=1).values
    spread = (largest[:, 0] - largest[:, -1]).clamp_min(1e-12)
    if logits.shape[1] < 3:  # noqa: PLR2004 - the ratio would be 1 or -1 everywhere
        spread = torch.ones_like(spread)
    return torch.stack([(1e-4 - margin(logits, labels)) / spread, excess])


def _penalty(constraint: Tensor, growth: Tensor, multiplier: Tensor) -> Tensor:
    """The penalty of a constraint: a cubic above 0, a hyperbola below, with equal slopes at 0."""
    above, below = constraint.clamp_min(0), constraint.clamp_max(0)
    cubic = multiplier * above + multiplier * growth * above**2 + growth**2 * above**3 / 6
    return cubic + multiplier * below / (1 - growth * below)


def _slope(constraint: Tensor, growth: Tensor, multiplier: Tensor) -> Tensor:
    """The derivative of :func:`_penalty` by the constraint."""
    above, below = constraint.clamp_min(0), constraint.clamp_max(0)
    cubic = multiplier + 2 * multiplier * growth * above + growth**2 * above**2 / 2
    return torch.where(constraint > 0, cubic, multiplier / (1 - growth * below) ** 2)


@dataclass(frozen=True)
class CarliniWagner(_SmallestL2):
    r"""The smallest change in L2 by a search for the weight of both constraints.

    .. math:: \min_x \|x - x_0\|_2^2 + c\,\bigl(\mathrm{relu}(\kappa - m(x)) +
        \mathrm{relu}(g(x) - t)\bigr)

    with m, the lead of the largest other logit over that of the true class. Its authors used this
    attack to break kernel-density detectors.

    Args:
        rounds: how often the weight c is changed: it is halved or raised for each image.
        confidence: the margin kappa, in logits.
        weight: the first weight c.
        learning_rate: learning rate of Adam, in the space of the inverse of tanh.

    Source:
        Carlini and Wagner (2017), arXiv:1608.04644, and arXiv:1705.07263, section 4, for detectors.
    """

    rounds: int = field(default=9, kw_only=True)
    confidence: float = field(default=0.0, kw_only=True)
    weight: float = field(default=1.0, kw_only=True)
    learning_rate: float = field(default=0.01, kw_only=True)

    def __post_init__(self) -> None:
        """Raise if a setting is outside its range."""
        super().__post_init__()
        check_count(self.rounds, "rounds")
        if not (self.confidence >= 0 and self.weight > 0 and self.learning_rate > 0):
            message = (
                "expected a confidence of at least 0, a weight and a learning rate above 0, got "
                f"{self.confidence}, {self.weight} and {self.learning_rate}; correct them"
            )
            raise InputError(message)

    def descend(self, search: _Search) -> None:
        """Descend once for each weight."""
        count = len(search.images)
        weight = search.images.new_full((count,), self.weight)
        low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        for _ in range(self.rounds):
            met = self._descend_once(search, weight)
            low, high = torch.where(met, low, weight), torch.where(met, weight, high)
            weight = torch.where(high.isinf(), 10 * weight, (low + high) / 2)

    def _descend_once(self, search: _Search, weight: Tensor) -> Tensor:
        """Descend with one weight per image; return which images evaded the guard."""
        low, span = search.low, search.high - search.low
        unit = (2 * (search.images - low) / span - 1) * _INSIDE
        hidden = unit.atanh().requires_grad_()
        adam = torch.optim.Adam([hidden], lr=self.learning_rate)
        ever = torch.zeros_like(weight, dtype=torch.bool)
        for _ in range(self.steps):
            images = low + span * (hidden.tanh() + 1) / 2
            logits, excess = search.terms(images)
            ever |= search.offer(images, logits, excess, self.confidence)
            lack = (self.confidence + 1e-4 - margin(logits, search.labels)).relu() + excess.relu()
            squares = ((images - search.images) / search.span).flatten(1).square().sum(1)
            hidden.grad = torch.autograd.grad((squares + weight * lack).sum(), hidden)[0]
            adam.step()
        return ever
