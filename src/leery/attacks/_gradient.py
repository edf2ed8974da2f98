"""The loop shared by all gradient attacks, with FGSM, BIM and PGD as settings of it."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from leery._checks import (
    Bounds,
    check_batch_size,
    check_bound_values,
    check_bounds,
    check_count,
    check_images,
    check_labels,
    clamp,
)
from leery.attacks._norms import NORMS, NormName
from leery.attacks._objectives import CrossEntropy, Objective, ObjectiveOf
from leery.errors import InputError
from leery.models import device_of, isolated

__all__ = ["BIM", "FGSM", "PGD", "Attack", "Climb", "GradientAttack", "gradients_of", "stacked"]


class Attack(Protocol):
    """Interface of an attack, which makes adversarial versions of images."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, /, *, seed: int = 0
    ) -> Tensor:
        """The adversarial version of each image.

        Args:
            model: the classifier; its state is restored afterwards.
            images: ``(N, ...)``.
            labels: int ``(N,)``, the true classes.
            seed: random seed.
        """


@dataclass(frozen=True)
class GradientAttack:
    r"""Projected gradient ascent on an objective inside a ball around each image.

    .. math::
        x_{k+1} = \mathrm{clip}_{bounds}\bigl(x_0 +
        \Pi_\epsilon(x_k + \alpha\, d(\nabla_x L(x_k, y)) - x_0)\bigr)

    Args:
        epsilon: the radius of the ball, in the units of the images (pixels in [0, 1]).
        steps: the number of gradient steps.
        step_size: alpha, in the same units; by default a fixed fraction of epsilon.
        random_start: True to start at a uniform draw from the ball instead of the clean image.
        norm: "linf" (d = sign) or "l2" (d = gradient scaled to length one).
        bounds: lowest and highest pixel value, or a pair per channel; by default (0, 1), or those
            of the detector where an evaluation runs the attack.
        objective: makes the objective to maximize from the classifier; by default the cross-entropy
            of the true class.

    Raises:
        InputError: when a setting is outside its range.
    """

    epsilon: float
    steps: int = field(default=10, kw_only=True)
    step_size: float | None = field(default=None, kw_only=True)
    random_start: bool = field(default=False, kw_only=True)
    norm: NormName = field(default="linf", kw_only=True)
    bounds: Bounds | None = field(default=None, kw_only=True)
    objective: ObjectiveOf = field(default=CrossEntropy, kw_only=True)

    relative_step: ClassVar[float] = 0.1
    """Default step size as a fraction of epsilon."""

    def __post_init__(self) -> None:
        """Raise if a setting is outside its range."""
        check_count(self.steps, "steps")
        if self.bounds is not None:
            object.__setattr__(self, "bounds", check_bound_values(self.bounds))
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            message = f"expected a finite epsilon of at least 0, got {self.epsilon}; correct it"
        elif self.step_size is not None and not self.step_size > 0:
            message = f"expected a step size above 0, got {self.step_size}; correct it"
        elif self.norm not in NORMS:
            message = f"expected one of the norms {', '.join(NORMS)}, got {self.norm!r}; choose one"
        else:
            return
        raise InputError(message)

    @property
    def alpha(self) -> float:
        """The step size in use, in the units of the images."""
        return self.relative_step * self.epsilon if self.step_size is None else self.step_size

    def within(self, bounds: Bounds | None) -> Self:
        """Return a copy with these bounds, or self if it has bounds or none are given."""
        return self if bounds is None or self.bounds is not None else replace(self, bounds=bounds)

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        batch_size: int = 256,
    ) -> Tensor:
        """The adversarial version of each image, crafted against the model in eval mode.

        The state of the model is restored, and the images are not modified.

        Args:
            model: returns logits ``(N, classes)``.
            images: float ``(N, ...)`` within the bounds, on any device.
            labels: int ``(N,)``, the true classes.
            seed: random seed of the random start, which does not depend on the batch size.
            batch_size: number of images attacked at once.

        Returns:
            Tensor like ``images``, inside the ball around each image and inside the bounds.

        Raises:
            InputError: when images or labels do not fit.
        """
        check_images(images, floating=True)
        check_labels(labels, len(images))
        check_batch_size(batch_size)
        bounds = self.bounds or (0.0, 1.0)
        check_bounds(images, bounds)
        clean = images.detach()
        if self.epsilon == 0:
            return clean.clone()
        start = self._start(clean, bounds, seed)
        with isolated(model, clean) as still, torch.inference_mode(mode=False), torch.enable_grad():
            objective, device = self.objective(still), device_of(model)
            found = []
            for batch in zip(
                clean.split(batch_size),
                start.split(batch_size),
                labels.split(batch_size),
                strict=True,
            ):
                # Copies: tensors made under the caller's inference mode cannot take part in
                # autograd.
                origin, first, truth = (part.to(device, copy=True) for part in batch)
                climb = Climb(objective, bounds, origin, first, truth.long(), seed)
                found.append(self.climb(climb).to(clean.device))
        return torch.cat(found)

    def _start(self, images: Tensor, bounds: Bounds, seed: int) -> Tensor:
        if not self.random_start:
            return images
        generator = torch.Generator().manual_seed(seed)
        delta = NORMS[self.norm].start(images, self.epsilon, generator).to(images.device)
        return clamp(images + delta, bounds)

    def climb(self, climb: "Climb") -> Tensor:
        """The adversarial version of each image of a batch, ``(N, ...)``."""
        objective, norm = climb.objective, NORMS[self.norm]
        iterate, origin = climb.start, climb.origin
        kept = _BestIterate(objective, iterate)
        for _ in range(self.steps):
            values, gradients = gradients_of(objective, iterate, climb.labels)
            kept.offer(iterate, values)
            delta = iterate + self.alpha * norm.direction(objective.direction(gradients)) - origin
            iterate = clamp(origin + norm.project(delta, self.epsilon), climb.bounds)
        kept.last(iterate, climb.labels)
        return kept.images


@dataclass(frozen=True)
class Climb:
    """A batch of images to attack, on the classifier's device.

    Attributes:
        objective: what to maximize.
        bounds: lowest and highest pixel value, or a pair per channel.
        origin: the clean images, ``(N, ...)``.
        start: the first iterates, ``(N, ...)``, inside the ball and the bounds.
        labels: int64 ``(N,)``, the true classes.
        seed: random seed of the attack.
    """

    objective: Objective
    bounds: Bounds
    origin: Tensor
    start: Tensor
    labels: Tensor
    seed: int = 0


class _BestIterate:
    """Keeps, for each image, the iterate that the objective prefers.

    Args:
        objective: decides which of two iterates is better.
        start: the first iterate.
    """

    def __init__(self, objective: Objective, start: Tensor) -> None:
        self._objective = objective
        self._values: Tensor | None = None
        self.images = start

    def offer(self, iterate: Tensor, values: Tensor) -> None:
        """Replace the images for which a new iterate is better."""
        if not self._objective.chooses:
            return
        if self._values is None:
            self.images, self._values = iterate, values
            return
        better = self._objective.better(values, self._values)
        shaped = better.view(-1, *(1 for _ in iterate.shape[1:]))
        self.images = torch.where(shaped, iterate, self.images)
        self._values = torch.where(better, values, self._values)

    def last(self, iterate: Tensor, labels: Tensor) -> None:
        """Offer the iterate after the last step; compute its objective only if needed."""
        if not self._objective.chooses:
            self.images = iterate
            return
        with torch.no_grad():
            self.offer(iterate, stacked(self._objective.value(iterate, labels)))


def gradients_of(objective: Objective, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the terms, and the gradient of each with respect to the images only.

    What is not a number in a gradient counts as 0, so that no iterate is lost.
    """
    variable = images.detach().requires_grad_()
    values = objective.value(variable, labels)
    terms = values if isinstance(values, tuple) else (values,)
    found = [
        torch.autograd.grad(term.sum(), variable, retain_graph=number < len(terms) - 1)[0]
        for number, term in enumerate(terms)
    ]
    return stacked(values), torch.stack(found).nan_to_num(0.0)


def stacked(values: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The objective, ``(N,)`` or ``(K, N)``, detached from the autograd graph."""
    return (torch.stack(values) if isinstance(values, tuple) else values).detach()


@dataclass(frozen=True)
class FGSM(GradientAttack):
    """The fast gradient sign method: one step, by default of epsilon from the clean image.

    Source:
        Goodfellow, Shlens, Szegedy (2015), arXiv:1412.6572; Tuna, Catak, Eskil (2020), eq. 1.
    """

    steps: int = field(default=1, init=False)

    relative_step: ClassVar[float] = 1.0


@dataclass(frozen=True)
class BIM(GradientAttack):
    """The basic iterative method: by default ten steps of 0.2 epsilon from the clean image.

    Source:
        Kurakin, Goodfellow, Bengio (2017), arXiv:1607.02533; Tuna, Catak, Eskil (2020), eq. 2,
        which as printed lacks the iterate inside the clip.
    """

    steps: int = field(default=10, kw_only=True)

    relative_step: ClassVar[float] = 0.2


@dataclass(frozen=True)
class PGD(GradientAttack):
    """Projected gradient descent: by default a random start and 40 steps of epsilon / 30.

    Source:
        Madry et al. (2018), arXiv:1706.06083; Tuna, Catak, Eskil (2020), eq. 3.
    """

    steps: int = field(default=40, kw_only=True)
    random_start: bool = field(default=True, kw_only=True)

    relative_step: ClassVar[float] = 1 / 30
