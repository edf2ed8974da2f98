"""Interval bounds on a network's outputs over boxes of images, also sound in floating point."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery._checks import Bounds, bounds_like, check_bounds
from leery.errors import InputError, UnsupportedModelError

__all__ = ["Box", "Ramp", "interval_bounds", "margin_bounds"]


@dataclass(frozen=True)
class Box:
    """Lower and upper bounds on each element of a batch of images or of activations.

    Attributes:
        lower: floating point ``(N, ...)``, the smallest value of each entry.
        upper: the largest value, of the same shape and type.
    """

    lower: Tensor
    upper: Tensor

    @classmethod
    def around(cls, images: Tensor, epsilon: float | Tensor, bounds: Bounds = (0.0, 1.0)) -> Self:
        """The L-infinity ball around each image, cut to the pixel bounds.

        Args:
            images: float ``(N, ...)`` within the bounds.
            epsilon: radius in pixel values, at least 0; one number, or one per image ``(N,)``.
            bounds: lowest and highest pixel value, or a pair per channel.

        Raises:
            InputError: when a radius is negative or not finite, or a pixel outside the bounds.
        """
        radius = torch.as_tensor(epsilon, dtype=torch.float64, device=images.device)
        wrong = radius[~((radius >= 0) & radius.isfinite())].flatten()
        if len(wrong):
            message = (
                f"expected a finite epsilon of at least 0, got {float(wrong[0]):g}; correct it"
            )
            raise InputError(message)
        check_bounds(images, bounds)
        centre = images.detach().double()
        # A bound is often no number of the images' type; pixels may lie at the next one.
        low, high = (
            outer(bound, bound.to(images.dtype).double())
            for outer, bound in zip(
                (torch.minimum, torch.maximum), bounds_like(bounds, centre), strict=True
            )
        )
        if radius.ndim:
            radius = radius.view(-1, *(1 for _ in images.shape[1:]))
        return cls((centre - radius).clamp_min_(low), (centre + radius).clamp_max_(high))

    def rows(self, kept: Tensor) -> Self:
        """The boxes of some of the images."""
        return type(self)(self.lower[kept], self.upper[kept])

    @property
    def centre(self) -> Tensor:
        """The middle of each side, ``(N, ...)``."""
        return self.lower.lerp(self.upper, 0.5)

    @property
    def radius(self) -> Tensor:
        """Half the length of each side, ``(N, ...)``."""
        return (self.upper - self.lower) / 2


class _Own(Box):
    """A box whose ends nobody else reads, and whose values no gradient needs."""


class Ramp(nn.Module):
    r"""A clipped linear function that makes nearly binary images more nearly binary.

    .. math:: x \mapsto \mathrm{clamp}((x - m) / w + 1/2, 0, 1)

    Args:
        middle: the pixel value m that is mapped to 1/2.
        width: length w of the interval of pixel values that is mapped to [0, 1], above 0.

    Raises:
        InputError: when the width is not above 0.

    Notes:
        The derivative is 0 for almost all pixels, which would hide the network from gradient
        attacks. The backward pass is therefore that of the identity (straight-through).
    """

    def __init__(self, middle: float = 0.5, width: float = 0.05) -> None:
        super().__init__()
        if not width > 0:
            message = f"expected a width above 0, got {width}; correct it"
            raise InputError(message)
        self.middle, self.width = middle, width

    def forward(self, images: Tensor) -> Tensor:
        """The images on the ramp, in [0, 1]."""
        steep = (images.detach() - self.middle).div_(self.width).add_(0.5).clamp_(0, 1)
        return images + (steep - images.detach()) if images.requires_grad else steep

    def extra_repr(self) -> str:
        """Middle and width."""
        return f"middle={self.middle}, width={self.width}"


def interval_bounds(network: nn.Module, box: Box, *, rounding: float = 0.0) -> Box:
    """Bounds on the network's outputs over a box of inputs.

    With ``rounding=0``, the default, rounding errors are ignored, those of the network and those of
    the bounds: not for certificates of a running program. With ``rounding`` above 0 the bounds hold
    for outputs computed in floating point, if every linear layer computes sums of products, in any
    order: not by Winograd or FFT convolution, which libraries use at stride 1 only.

    Args:
        network: a layer of a supported type, or an ``nn.Sequential`` of them, in eval mode:
            ``Linear``, ``Conv2d``, ``BatchNorm1d`` and ``2d``, average and max pooling, monotone
            activation functions, ``Flatten``, ``Dropout``, ``Identity``, :class:`Ramp`.
        box: inputs; their type is that in which the bounds are computed.
        rounding: unit roundoff of the arithmetic in which both the network and the bounds are
            computed, such as 2**-24 for float32; weights and box must then be of that type. 0 for
            exact arithmetic. Above 0 only ``Linear``, ``Conv2d`` and layers whose computed output
            never decreases when an input grows (max pooling, ``ReLU``, ``ReLU6``, ``Hardtanh``,
            ``Flatten``, ``Dropout``, ``Identity``, :class:`Ramp`) are supported.

    Raises:
        UnsupportedModelError: when a layer has no bounds; the message names it.

    Source:
        Gowal et al. (2018), arXiv:1810.12715. Rounding errors of sums of products: Higham (2002),
        Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    return _through(_layers(network), box, rounding)


def margin_bounds(
    network: nn.Sequential, box: Box, labels: Tensor, *, rounding: float = 0.0
) -> Tensor:
    """Lower bounds of the label's logit minus each other logit over a box of inputs.

    The last layer is folded into the differences, so that what both logits share cancels out.

    Args:
        network: a sequence as for :func:`interval_bounds`, with ``Linear`` as its last layer.
        box: inputs.
        labels: int64 ``(N,)``.
        rounding: as for :func:`interval_bounds`; the bound then also covers the rounding error of
            the subtraction of the two logits.

    Returns:
        ``(N, classes)``, of the box's type; infinite in the column of the label.

    Raises:
        UnsupportedModelError: when the last layer is another one, or a layer has no bounds.
    """
    *body, (name, last) = _layers(network)
    if type(last) is not nn.Linear:
        message = f"expected Linear as the last layer, got {_shown(name, last)}; end with Linear"
        raise UnsupportedModelError(message)
    inner = _through(body, box, rounding)
    with _at_full_precision(box, rounding):
        return _margins(last, inner, labels.long(), rounding)


def _margins(last: nn.Linear, box: Box, rows: Tensor, rounding: float) -> Tensor:
    """The bounds of :func:`margin_bounds` from a box of the last layer's inputs."""
    weight, bias = _cast(last, box)
    centre, column = box.centre, rows.unsqueeze(1)
    radius = box.upper - centre
    logits = functional.linear(centre, weight, bias)
    # Label by label, so that each product has the differences of one label only.
    order, counts = rows.argsort(), torch.bincount(rows, minlength=len(weight))
    spreads = [
        functional.linear(part, (weight[label] - weight).abs())
        for label, part in enumerate(radius[order].split(counts.tolist()))
        if len(part)
    ]
    spread = torch.cat([*spreads, radius.new_empty(0, len(weight))])[order.argsort()]
    margins: Tensor = logits.gather(1, column) - logits - spread
    if rounding:
        largest = centre.abs() + radius
        errors = functional.linear(largest, weight.abs(), None if bias is None else bias.abs())
        errors = _growth(last.in_features, rounding) * errors
        tiny = torch.finfo(errors.dtype).tiny * weight.abs().amax().clamp_min(1)
        errors = errors + last.in_features * tiny
        margins = margins - errors.gather(1, column) - errors
    return margins.scatter(1, column, float("inf"))


Rule = Callable[[Box, float], Box]


def _through(layers: Iterable[tuple[str, nn.Module]], box: Box, rounding: float) -> Box:
    """The box after some layers."""
    with _at_full_precision(box, rounding):
        for name, layer in layers:
            box = _rule(name, layer, rounding)(box, rounding)
    return box


def _at_full_precision(box: Box, rounding: float) -> AbstractContextManager[object]:
    """Switch off a caller's autocast, under which layers would compute in a shorter type.

    Raises:
        InputError: when the box's type is too short or rounds more than ``rounding`` says.
    """
    kind = box.lower.dtype
    roundoff = torch.finfo(kind).eps / 2
    if rounding and (rounding < roundoff or kind not in (torch.float32, torch.float64)):
        message = (
            f"expected a box of float32 or float64 and at least its unit roundoff, got {kind}, "
            f"whose roundoff is {roundoff:.3g}, and {rounding:.3g}; correct them"
        )
        raise InputError(message)
    return torch.autocast(box.lower.device.type, enabled=False)


def _layers(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested sequences, with their names; a sequence with hooks is not opened."""
    if type(network) is not nn.Sequential or _hooked(network):
        yield prefix or "the network", network
        return
    for name, layer in network.named_children():
        yield from _layers(layer, f"{prefix}.{name}" if prefix else name)


def _rule(name: str, layer: nn.Module, rounding: float) -> Rule:
    """How a layer maps a box to a box.

    Raises:
        UnsupportedModelError: when there is no rule for it.
    """
    # Subclasses, and layers with hooks, may compute something else.
    kind = None if _hooked(layer) else type(layer)
    if layer.training and kind in _CHANGED_IN_TRAINING:
        message = f"expected {_shown(name, layer)} in eval mode, got train mode; call eval()"
        raise UnsupportedModelError(message)
    made, holds = _RULES.get(kind, (_ends, _never))
    if not holds(layer):
        message = (
            "expected layers with interval bounds (Linear, Conv2d padded with zeros, batch norm, "
            "pooling, Flatten, monotone activations) without hooks, in nn.Sequential, got "
            f"{_shown(name, layer)}; replace it"
        )
        raise UnsupportedModelError(message)
    if rounding and kind not in _OF_PROGRAMS:
        message = (
            "expected layers with bounds of their rounding errors (Linear, Conv2d, ReLU, max "
            f"pooling, Flatten), got {_shown(name, layer)}; replace it, or pass rounding=0"
        )
        raise UnsupportedModelError(message)
    return partial(made, layer)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)  # noqa: SLF001 - no other way


def _shown(name: str, layer: nn.Module) -> str:
    return f"{type(layer).__name__} ({name})"


def _growth(terms: int, rounding: float) -> float:
    """What bounds of a sum of products must be widened by, relative to the sum of their sizes.

    The computed sum of n products and a bias differs from the exact one by at most (n + 1) u / (1 -
    (n + 1) u) times the sum of the sizes, with the unit roundoff u, in any order. It is counted
    twice, for the network and for its bounds; 16 u and the further 5 % are more than
    enough for the rounding of centres, radii, differences and of this term itself, and for the
    denominator as long as n u is below 1 %.

    Raises:
        UnsupportedModelError: when a sum is too long for that.
    """
    if terms * rounding > _LONGEST:
        message = (
            f"expected at most {int(_LONGEST / rounding)} inputs of a unit, got {terms}; compute "
            "in float64"
        )
        raise UnsupportedModelError(message)
    return 2.1 * (terms + 8) * rounding


def _sums(
    apply: Callable[..., Tensor],
    layer: Any,  # noqa: ANN401 - a linear layer of any kind
    box: Box,
    rounding: float,
) -> Box:
    """Bounds of a linear layer, which ``apply(inputs, weight, bias)`` computes."""
    weight, bias = _cast(layer, box)
    centre, size, spare = box.centre, weight.abs(), None
    radius = box.upper - centre
    if rounding:
        growth = _growth(weight[0].numel(), rounding)
        # The largest size of an input, which is at most |centre| + radius.
        # Mostly none is negative, as after a ReLU; finding out takes less time than a copy.
        sizes = centre if bool(centre.amin() >= 0) else centre.abs()
        radius = radius.add_(sizes, alpha=growth)
        size = size * (1 + growth)
        spare = weight.new_zeros(len(weight)) if bias is None else bias.abs()
        # Products and inputs may underflow, by less than the smallest normal number each.
        tiny = torch.finfo(spare.dtype).tiny * size.amax().clamp_min(1)
        spare = growth * spare + weight[0].numel() * tiny
    centre = apply(centre, weight, bias)
    radius = apply(radius, size, spare)
    return _Own(centre - radius, radius.add_(centre))


def _ends(layer: nn.Module, box: Box, _rounding: float) -> Box:
    """A nondecreasing layer maps the ends of the box to the ends of the result."""
    lower, upper = box.lower, box.upper
    if getattr(layer, "inplace", False):
        lower, upper = lower.clone(), upper.clone()
    return Box(layer(lower), layer(upper))


def _relu(layer: nn.ReLU, box: Box, rounding: float) -> Box:
    """As :func:`_ends`, but in place if nobody else reads the ends, which saves memory and time."""
    if not isinstance(box, _Own):
        return _ends(layer, box, rounding)
    return Box(box.lower.relu_(), box.upper.relu_())


def _linear(layer: nn.Linear, box: Box, rounding: float) -> Box:
    return _sums(functional.linear, layer, box, rounding)


def _convolution(layer: nn.Conv2d, box: Box, rounding: float) -> Box:
    apply = partial(
        functional.conv2d,
        stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups,
    )  # fmt: skip
    return _sums(apply, layer, box, rounding)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, box: Box, _rounding: float) -> Box:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, *(1 for _ in box.lower.shape[2:]))
    mean, variance = layer.running_mean.to(box.lower), layer.running_var.to(box.lower)
    scale = (variance + layer.eps).rsqrt()
    shift = torch.zeros_like(mean)
    if layer.affine:
        weight, shift = _cast(layer, box)
        scale = scale * weight
    moved = shift - mean * scale
    centre = box.centre * scale.view(shape) + moved.view(shape)
    radius = box.radius * scale.abs().view(shape)
    return Box(centre - radius, centre + radius)


def _cast(layer: Any, box: Box) -> tuple[Tensor, Any]:  # noqa: ANN401 - the bias may be None
    """Weight and bias in the dtype and on the device of the box."""
    bias = None if layer.bias is None else layer.bias.to(box.lower)
    return layer.weight.to(box.lower), bias


_LONGEST = 0.01
"""Largest number of terms of a sum, times the unit roundoff, for which :func:`_growth` holds."""


def _always(_layer: nn.Module) -> bool:
    return True


def _never(_layer: nn.Module) -> bool:
    return False


_RULES: Mapping[type[nn.Module] | None, tuple[Callable[..., Box], Callable[[Any], bool]]] = {
    **dict.fromkeys(
        (
            *(Ramp, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d),
            *(nn.ReLU6, nn.SELU, nn.Sigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanh),
            *(nn.Hardsigmoid, nn.Hardtanh, nn.AdaptiveAvgPool2d),
        ),
        (_ends, _always),
    ),
    nn.ReLU: (_relu, _always),
    nn.AvgPool2d: (_ends, lambda layer: (layer.divisor_override or 1) > 0),
    nn.Softplus: (_ends, lambda layer: layer.beta > 0),
    nn.LeakyReLU: (_ends, lambda layer: layer.negative_slope >= 0),
    nn.ELU: (_ends, lambda layer: layer.alpha >= 0),
    nn.CELU: (_ends, lambda layer: layer.alpha > 0),
    nn.MaxPool2d: (_ends, lambda layer: not layer.return_indices),
    nn.AdaptiveMaxPool2d: (_ends, lambda layer: not layer.return_indices),
    nn.Linear: (_linear, _always),
    nn.Conv2d: (_convolution, lambda layer: layer.padding_mode == "zeros"),
    nn.BatchNorm1d: (_batch_norm, lambda layer: layer.running_mean is not None),
    nn.BatchNorm2d: (_batch_norm, lambda layer: layer.running_mean is not None),
}
"""How each type of layer maps a box, and the condition under which it may."""

_OF_PROGRAMS = (
    *(Ramp, nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.ReLU, nn.ReLU6),
    *(nn.Hardtanh, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d),
)
"""Types of layers whose bounds hold in floating point too."""

_CHANGED_IN_TRAINING = (nn.Dropout, nn.Dropout2d, nn.BatchNorm1d, nn.BatchNorm2d)
