"""The one loop of every gradient attack, and the settings that make FGSM, BIM and PGD of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery._checks import check_batch_size, check_bounds, check_images, check_labels
from leery.attacks._narrow import NarrowConvolutions
from leery.attacks._norms import NORMS, NormName
from leery.errors import InputError
from leery.models import Run, Trial, device_of, guest, run_fast, run_model

__all__ = ["BIM", "FGSM", "PGD", "Attack", "GradientAttack"]

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""What makes the adversarial twins of images, given the classifier and the true classes."""


@dataclass(frozen=True)
class GradientAttack:
    r"""Ascend the cross-entropy of the true label inside a ball around each image.

    .. math::
        x_{k+1} = \mathrm{clip}_{bounds}\bigl(x_0 +
        \Pi_\epsilon(x_k + \alpha\, d(\nabla_x L(x_k, y)) - x_0)\bigr)

    Args:
        epsilon: the radius of the ball, in the units of the images (pixels in [0, 1]).
        steps: the number of gradient steps.
        step_size: alpha, in the same units; by default a fixed share of epsilon.
        random_start: whether to start at a uniform draw from the ball.
        norm: "linf" (d = sign) or "l2" (d = gradient of length one).
        bounds: the lowest and the highest pixel value.

    Raises:
        InputError: when a setting is outside its range.
    """

    epsilon: float
    steps: int = field(default=10, kw_only=True)
    step_size: float | None = field(default=None, kw_only=True)
    random_start: bool = field(default=False, kw_only=True)
    norm: NormName = field(default="linf", kw_only=True)
    bounds: tuple[float, float] = field(default=(0.0, 1.0), kw_only=True)

    relative_step: ClassVar[float] = 0.1
    """The default step size as a share of epsilon."""

    def __post_init__(self) -> None:
        """Refuse settings that no attack can have."""
        low, high = self.bounds
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            message = f"expected a finite epsilon of at least 0, got {self.epsilon}; correct it"
        elif self.steps < 1:
            message = f"expected at least 1 step, got {self.steps}; pass a larger number"
        elif self.step_size is not None and not self.step_size > 0:
            message = f"expected a step size above 0, got {self.step_size}; correct it"
        elif self.norm not in NORMS:
            message = f"expected a norm of {', '.join(NORMS)}, got {self.norm!r}; name one"
        elif not low < high:
            message = f"expected bounds (low, high) with low < high, got {self.bounds}; swap them"
        else:
            return
        raise InputError(message)

    @property
    def alpha(self) -> float:
        """The step size in use, in the units of the images."""
        return self.relative_step * self.epsilon if self.step_size is None else self.step_size

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        batch_size: int = 256,
    ) -> Tensor:
        """The adversarial twin of each image, crafted against the model in eval mode.

        The model and the images are left as they were.

        Args:
            model: returns logits ``(N, classes)``.
            images: float ``(N, ...)`` within the bounds, on any device.
            labels: int ``(N,)``, the true classes.
            seed: of the random start; the batch size does not change what it draws.
            batch_size: how many images are worked on at once.

        Returns:
            Like ``images``: inside the ball around each and inside the bounds.

        Raises:
            InputError: when images or labels do not fit.
        """
        check_images(images, floating=True)
        check_labels(labels, len(images))
        check_batch_size(batch_size)
        check_bounds(images, self.bounds)
        clean = images.detach()
        if self.epsilon == 0:
            return clean.clone()
        start = self._start(clean, seed)
        with guest(model), torch.inference_mode(mode=False), torch.enable_grad():
            twins = [
                self._climb(model, *batch)
                for batch in zip(
                    clean.split(batch_size),
                    start.split(batch_size),
                    labels.split(batch_size),
                    strict=True,
                )
            ]
        return torch.cat(twins)

    def _start(self, images: Tensor, seed: int) -> Tensor:
        if not self.random_start:
            return images
        generator = torch.Generator().manual_seed(seed)
        delta = NORMS[self.norm].start(images, self.epsilon, generator).to(images.device)
        return (images + delta).clamp(*self.bounds)

    def _climb(self, model: nn.Module, clean: Tensor, start: Tensor, labels: Tensor) -> Tensor:
        norm, device = NORMS[self.norm], device_of(model)
        # Copies: tensors made under the caller's inference mode cannot take part in autograd.
        origin = clean.to(device, copy=True)
        iterate = start.to(device, copy=True)
        truth = labels.to(device, torch.int64, copy=True)
        for _ in range(self.steps):
            gradient = _input_gradient(model, iterate, truth)
            delta = iterate + self.alpha * norm.direction(gradient) - origin
            iterate = (origin + norm.project(delta, self.epsilon)).clamp(*self.bounds)
        return iterate.to(clean.device)


@dataclass(frozen=True)
class FGSM(GradientAttack):
    """The fast gradient sign method: one step, by default of size epsilon and from the image.

    Source:
        Goodfellow, Shlens, Szegedy (2015), arXiv:1412.6572; the paper's eq. 1.
    """

    steps: int = field(default=1, init=False)

    relative_step: ClassVar[float] = 1.0


@dataclass(frozen=True)
class BIM(GradientAttack):
    """The basic iterative method: small steps, by default of 0.2 epsilon and from the image.

    Source:
        Kurakin, Goodfellow, Bengio (2017), arXiv:1607.02533; the paper's eq. 2, whose print
        lacks the iterate inside the clip.
    """

    steps: int = field(default=10, kw_only=True)

    relative_step: ClassVar[float] = 0.2


@dataclass(frozen=True)
class PGD(GradientAttack):
    """Projected gradient descent: by default a random start in the ball and steps of epsilon / 30.

    Source:
        Madry et al. (2018), arXiv:1706.06083; the paper's eq. 3.
    """

    steps: int = field(default=40, kw_only=True)
    random_start: bool = field(default=True, kw_only=True)

    relative_step: ClassVar[float] = 1 / 30


def _input_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy with respect to the images only."""
    variable = images.detach().requires_grad_()
    run = _run_narrow if _NARROW.passed(model, images) else run_model
    logits = run(model, variable)
    check_labels(labels, len(images), logits.shape[1])
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return torch.autograd.grad(loss, variable)[0]


def _run_narrow(model: nn.Module, variable: Tensor) -> Tensor:
    with NarrowConvolutions():
        return run_fast(model, variable)


def _gradient_of_logits(run: Run) -> Run:
    """The gradient of a sum of the logits in which each has another weight."""

    def gradient(model: nn.Module, pair: Tensor) -> Tensor:
        variable = pair.clone().requires_grad_()
        logits = run(model, variable)
        weights = torch.linspace(-1, 1, logits.numel(), device=logits.device, dtype=logits.dtype)
        return torch.autograd.grad((logits.flatten() * weights).sum(), variable)[0]

    return gradient


_NARROW = Trial(_gradient_of_logits(run_model), _gradient_of_logits(_run_narrow))
