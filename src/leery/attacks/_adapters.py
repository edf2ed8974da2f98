"""Adapters for attacks of foolbox and the Adversarial Robustness Toolbox."""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from leery._checks import Bounds, check_bound_values, check_bounds, check_images, check_labels
from leery._extras import imported
from leery.attacks._norms import NormName
from leery.errors import InputError
from leery.models import device_of, isolated, run_model

__all__ = ["ADAPTED", "AdaptedAttack", "Preset"]


@dataclass(frozen=True)
class Preset:
    """Settings with which an attack of another library is run.

    Attributes:
        library: "foolbox" or "art" (the Adversarial Robustness Toolbox).
        source: publication and variant of the attack.
        strength: meaning of the strength parameter; None for an attack without one.
        default: default strength; None if there is no strength or the caller must give it.
        settings: description of the settings that matter, and of departures from the library's.
        run: function that returns the adversarial images; its arguments are the classifier, images
            in [0, 1], labels, the strength (distances for pixels in [0, 1]) and the norm.
        distance: True if the strength is a distance in pixels.
        norms: norms that the attack supports.
    """

    library: str
    source: str
    strength: str | None
    default: float | None
    settings: str
    run: Callable[[nn.Module, Tensor, Tensor, float, str], Tensor]
    distance: bool = False
    norms: tuple[NormName, ...] = ("l2",)


@dataclass(frozen=True)
class AdaptedAttack:
    """An attack of another library, selected by the name of its preset.

    Args:
        name: a key of :data:`ADAPTED`.
        strength: strength of the attack, with the meaning and the default that the preset states.
        norm: "linf" or "l2", for attacks that support both; by default the preset's first norm.
        bounds: lowest and highest pixel value; by default (0, 1), or those of the detector where
            an evaluation runs the attack.
        batch_size: number of images attacked at once.

    Raises:
        InputError: when there is no such attack, or a setting is outside its range.

    Notes:
        Pixels are mapped to [0, 1] for the library and back afterwards. The state of the classifier
        and the global random states are restored. Where an attack fails, the clean image or the
        last attempt is returned.
    """

    name: str
    strength: float | None = None
    norm: NormName | None = None
    bounds: Bounds | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Raise if the attack does not support a setting."""
        preset = ADAPTED.get(self.name)
        if preset is None:
            message = (
                f"expected one of {', '.join(ADAPTED)} as attack, got {self.name!r}; choose one"
            )
        elif self.norm is not None and self.norm not in preset.norms:
            names = " or ".join(preset.norms)
            message = f"expected the norm {names} for {self.name}, got {self.norm!r}; leave it out"
        elif self.strength is not None and preset.strength is None:
            message = (
                f"expected {self.name} without a strength, because it searches for the "
                f"smallest change, got {self.strength:g}; leave it out"
            )
        elif self.strength is None and preset.default is None and preset.strength is not None:
            message = f"expected {preset.strength} for {self.name}, got no strength; pass one"
        elif self.strength is not None and not (
            math.isfinite(self.strength) and self.strength >= 0
        ):
            message = f"expected a finite strength of at least 0, got {self.strength}; correct it"
        else:
            if self.bounds is not None:
                object.__setattr__(self, "bounds", check_bound_values(self.bounds))
            return
        raise InputError(message)

    def within(self, bounds: Bounds | None) -> Self:
        """Return a copy with these bounds, or self if it has bounds or none are given."""
        return self if bounds is None or self.bounds is not None else replace(self, bounds=bounds)

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0
    ) -> Tensor:
        """The adversarial version of each image.

        Args:
            model: returns logits ``(N, classes)``.
            images: float ``(N, channels, height, width)`` within the bounds, on any device.
            labels: int ``(N,)``, the true classes.
            seed: random seed.

        Returns:
            Like ``images``, inside the bounds.

        Raises:
            InputError: when images or labels do not fit, or the library is not installed.
        """
        check_images(images, floating=True)
        check_labels(labels, len(images))
        preset, (low, high) = ADAPTED[self.name], self._range()
        check_bounds(images, (low, high))
        strength = preset.default if self.strength is None else self.strength
        if preset.distance and strength == 0:
            return images.detach().clone()
        own = 0.0 if strength is None else strength / (high - low if preset.distance else 1.0)
        norm = self.norm or preset.norms[0]
        device = device_of(model)
        unit = ((images.detach().to(device, copy=True) - low) / (high - low)).clamp(0, 1)
        truth = labels.to(device, torch.int64)
        with (
            isolated(model, unit) as still,
            _seeded(seed, device),
            torch.inference_mode(mode=False),
        ):
            wrapped = _OnUnitPixels(still, low, high, unit.dtype)
            found = [
                preset.run(wrapped, *batch, own, norm)
                for batch in zip(
                    unit.split(self.batch_size), truth.split(self.batch_size), strict=True
                )
            ]
        # Some libraries return NaN where the search fails.
        made = torch.where(torch.cat(found).isnan(), unit, torch.cat(found)).clamp(0, 1)
        return (low + made * (high - low)).clamp(low, high).to(images)

    def _range(self) -> tuple[float, float]:
        """The lowest and highest pixel value.

        Raises:
            InputError: when the bounds differ by channel, because distances then share no unit.
        """
        bounds = np.asarray(self.bounds or (0.0, 1.0), dtype=np.float64).reshape(-1, 2)
        low, high = bounds.min(0)[0], bounds.max(0)[1]
        if not (bounds == (low, high)).all():
            message = (
                f"expected the same bounds for all channels for {self.name}, got {self.bounds}; "
                "wrap the classifier with leery.models.normalized"
            )
            raise InputError(message)
        return float(low), float(high)


class _OnUnitPixels(nn.Module):
    """A classifier wrapped so that it takes images in [0, 1]."""

    def __init__(self, model: nn.Module, low: float, high: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.low, self.high, self.dtype = low, high, dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = _ImagesOnly.apply(images, self._logits)  # type: ignore[no-untyped-call]
        return logits

    def _logits(self, images: Tensor) -> Tensor:
        # ART works in float32 whatever the classifier's dtype.
        own = images.to(self.dtype)
        return run_model(self.model, self.low + own * (self.high - self.low)).to(images.dtype)


class _ImagesOnly(torch.autograd.Function):
    """Logits whose backward pass reaches the images but no parameter of the classifier.

    The libraries call ``backward``, which would also compute the gradients of all parameters and
    add them to ``parameter.grad`` of the user's classifier.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401 - torch's
        with torch.set_grad_enabled(ctx.needs_input_grad[0]):
            ctx.images = images.detach().requires_grad_(ctx.needs_input_grad[0])
            ctx.logits = logits_of(ctx.images)
        return ctx.logits.detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's
        # Kept, because DeepFool asks for the gradient of one class after the other.
        gradients = torch.autograd.grad(ctx.logits, ctx.images, upstream, retain_graph=True)
        return gradients[0], None


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Temporarily seed the global random states that the libraries draw from."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - used by the libraries
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - used by the libraries
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002 - used by the libraries


def _foolbox(attack: str, **options: Any) -> Callable[..., Tensor]:  # noqa: ANN401 - the library's
    """Make a function that runs an attack of foolbox without a perturbation budget."""

    def run(model: nn.Module, images: Tensor, labels: Tensor, *_: object) -> Tensor:
        foolbox: Any = imported("foolbox", "attacks")
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=images.device)
        made = getattr(foolbox.attacks, attack)(**options)
        if attack == "SpatialAttack":
            return made(wrapped, images, foolbox.criteria.Misclassification(labels))[0]  # type: ignore[no-any-return]
        return made(wrapped, images, labels, epsilons=None)[0]  # type: ignore[no-any-return]

    return run


def _carlini_wagner(
    model: nn.Module, images: Tensor, labels: Tensor, confidence: float, _norm: str
) -> Tensor:
    run = _foolbox("L2CarliniWagnerAttack", steps=1000, confidence=confidence)
    made = run(model, images, labels)
    # foolbox returns zeros where the attack fails.
    nothing = (made == 0).flatten(1).all(1)
    return torch.where(nothing.view(-1, 1, 1, 1), images, made)


def _spatial(
    model: nn.Module, images: Tensor, labels: Tensor, degrees: float, _norm: str
) -> Tensor:
    pixels = images.shape[-1] / 14
    run = _foolbox("SpatialAttack", max_rotation=degrees, max_translation=pixels)
    return run(model, images, labels)


def _hop_skip_jump(model: nn.Module, images: Tensor, labels: Tensor, *unused: object) -> Tensor:
    """Run HopSkipJump; images without a starting point are returned unchanged."""
    run = _foolbox("HopSkipJumpAttack", steps=32, max_gradient_eval_steps=1000)
    try:
        return run(model, images, labels)
    except ValueError as error:
        if "init_attack failed" not in str(error):
            raise
    if len(images) == 1:
        return images
    halves = zip(images.tensor_split(2), labels.tensor_split(2), strict=True)
    return torch.cat([_hop_skip_jump(model, *half, *unused) for half in halves])


def _art(model: nn.Module, images: Tensor) -> Any:  # noqa: ANN401 - the library has no types
    classification: Any = imported("art.estimators.classification", "attacks")
    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    return classification.PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        tuple(images.shape[1:]),
        classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if images.device.type == "cpu" else "gpu",
    )


_ART_NORMS: Mapping[str, float] = {"linf": math.inf, "l2": 2}


def _apgd(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, norm: str) -> Tensor:
    evasion: Any = imported("art.attacks.evasion", "attacks")
    attack = evasion.AutoProjectedGradientDescent(
        _art(model, images),
        norm=_ART_NORMS[norm],
        eps=epsilon,
        eps_step=2 * epsilon,
        max_iter=100,
        nb_random_init=1,
        batch_size=len(images),
        loss_type="cross_entropy",
        verbose=False,
    )
    made = attack.generate(images.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(made).to(images)


def _square(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, norm: str) -> Tensor:
    evasion: Any = imported("art.attacks.evasion", "attacks")
    attack = evasion.SquareAttack(
        _art(model, images),
        norm=_ART_NORMS[norm],
        eps=epsilon,
        max_iter=1000,
        batch_size=len(images),
        verbose=False,
    )
    made = attack.generate(images.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(made).to(images)


ADAPTED: Mapping[str, Preset] = {
    "cw": Preset(
        "foolbox",
        "Carlini and Wagner (2017), L2",
        "the confidence, in logits",
        0.0,
        "1,000 steps (of 10,000) in each of 9 rounds of the search for the constant",
        _carlini_wagner,
    ),
    "deepfool": Preset(
        "foolbox",
        "Moosavi-Dezfooli et al. (2016), L2",
        None,
        None,
        "50 steps, overshoot 0.02: the library's",
        _foolbox("L2DeepFoolAttack"),
    ),
    "ddn": Preset(
        "foolbox",
        "Rony et al. (2019), decoupled direction and norm, L2",
        None,
        None,
        "100 steps: the library's",
        _foolbox("DDNAttack"),
    ),
    "apgd": Preset(
        "art",
        "Croce and Hein (2020), cross-entropy",
        "epsilon",
        None,
        "100 steps, first step 2 epsilon as in the paper (the library's is 0.1 for any epsilon), "
        "one random start (of 5)",
        _apgd,
        distance=True,
        norms=("linf", "l2"),
    ),
    "square": Preset(
        "art",
        "Andriushchenko et al. (2020), score-based",
        "epsilon",
        None,
        "1,000 queries (with the library's 100 the attack fails on most images)",
        _square,
        distance=True,
        norms=("linf", "l2"),
    ),
    "hopskipjump": Preset(
        "foolbox",
        "Chen, Jordan, Wainwright (2020), decision-based, L2",
        None,
        None,
        "32 steps (of 64), at most 1,000 queries for a gradient (of 10,000)",
        _hop_skip_jump,
    ),
    "spatial": Preset(
        "foolbox",
        "Engstrom et al. (2019), rotation and shift",
        "the largest rotation in degrees",
        15.0,
        "shifts up to a 14th of the width (2 pixels of 28); 5 x 5 x 5 grid, the library's",
        _spatial,
    ),
    "sparse": Preset(
        "foolbox",
        "Pintor et al. (2021), fast minimum norm, L0",
        None,
        None,
        "100 steps: the library's",
        _foolbox("L0FMNAttack"),
    ),
}
"""Presets of the attacks of other libraries, by name."""
