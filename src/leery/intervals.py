"""Interval bounds of a network's outputs over boxes of images."""

from collections.abc import Callable, Iterator, Mapping
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
    """A box of images or of activations for each image.

    Attributes:
        lower: float64 ``(N, ...)``, the smallest value of each entry.
        upper: float64 ``(N, ...)``, the largest value.
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
            message = f"expected an epsilon of at least 0, got {float(wrong[0]):g}; correct it"
            raise InputError(message)
        check_bounds(images, bounds)
        centre = images.detach().double()
        low, high = bounds_like(bounds, centre)
        if radius.ndim:
            radius = radius.view(-1, *(1 for _ in images.shape[1:]))
        return cls(torch.maximum(centre - radius, low), torch.minimum(centre + radius, high))

    def rows(self, kept: Tensor) -> Self:
        """The boxes of some of the images."""
        return type(self)(self.lower[kept], self.upper[kept])

    @property
    def centre(self) -> Tensor:
        """The middle of each side, float64 ``(N, ...)``."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half the length of each side, float64 ``(N, ...)``."""
        return (self.upper - self.lower) / 2


class Ramp(nn.Module):
    r"""A steep ramp on the pixels of black-and-white images.

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
        steep = ((images.detach() - self.middle) / self.width + 0.5).clamp(0, 1)
        return images + (steep - images.detach()) if images.requires_grad else steep

    def extra_repr(self) -> str:
        """The two numbers."""
        return f"middle={self.middle}, width={self.width}"


def interval_bounds(network: nn.Module, box: Box) -> Box:
    """Bounds of the network's outputs over a box of inputs.

    For every input in the box, each output lies within the bounds, up to the rounding of float64.

    Args:
        network: a layer of a supported type, or an ``nn.Sequential`` of them, in eval mode:
            ``Linear``, ``Conv2d``, ``BatchNorm1d`` and ``2d``, average and max pooling, monotone
            activation functions, ``Flatten``, ``Dropout``, ``Identity``, :class:`Ramp`.
        box: inputs.

    Raises:
        UnsupportedModelError: when a layer has no bounds; the message names it.

    Source:
        Gowal et al. (2018), arXiv:1810.12715.
    """
    for name, layer in _layers(network):
        box = _rule(name, layer)(box)
    return box


def margin_bounds(network: nn.Sequential, box: Box, labels: Tensor) -> Tensor:
    """Lower bounds of the label's logit minus each other logit over a box of inputs.

    The last layer is folded into the differences, so that what both logits share cancels out.

    Args:
        network: a sequence as for :func:`interval_bounds`, with ``Linear`` as its last layer.
        box: inputs.
        labels: int64 ``(N,)``.

    Returns:
        float64 ``(N, classes)``, infinite in the column of the label.

    Raises:
        UnsupportedModelError: when the last layer is another one, or a layer has no bounds.
    """
    *body, (name, last) = _layers(network)
    if type(last) is not nn.Linear:
        message = f"expected Linear as the last layer, got {_shown(name, last)}; end with Linear"
        raise UnsupportedModelError(message)
    for inner, layer in body:
        box = _rule(inner, layer)(box)
    weight, bias = _cast(last, box)
    rows = labels.long()
    differences = weight[rows].unsqueeze(1) - weight.unsqueeze(0)
    centre, radius = box.centre.unsqueeze(2), box.radius.unsqueeze(2)
    margins = (differences @ centre - differences.abs() @ radius).squeeze(2)
    if bias is not None:
        margins = margins + bias[rows].unsqueeze(1) - bias
    return margins.scatter(1, rows.unsqueeze(1), float("inf"))


Rule = Callable[[Box], Box]


def _layers(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested sequences, with their names; a sequence with hooks is not opened."""
    if type(network) is not nn.Sequential or _hooked(network):
        yield prefix or "the network", network
        return
    for name, layer in network.named_children():
        yield from _layers(layer, f"{prefix}.{name}" if prefix else name)


def _rule(name: str, layer: nn.Module) -> Rule:
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
    return partial(made, layer)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)  # noqa: SLF001 - no other way


def _shown(name: str, layer: nn.Module) -> str:
    return f"{type(layer).__name__} ({name})"


def _ends(layer: nn.Module, box: Box) -> Box:
    """A nondecreasing layer maps the ends of the box to the ends of the result."""
    # Copies: some layers work in place.
    return Box(layer(box.lower.clone()), layer(box.upper.clone()))


def _linear(layer: nn.Linear, box: Box) -> Box:
    weight, bias = _cast(layer, box)
    return _of(
        functional.linear(box.centre, weight, bias), functional.linear(box.radius, weight.abs())
    )


def _convolution(layer: nn.Conv2d, box: Box) -> Box:
    weight, bias = _cast(layer, box)
    apply = partial(
        functional.conv2d,
        stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups,
    )  # fmt: skip
    return _of(apply(box.centre, weight, bias), apply(box.radius, weight.abs()))


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, box: Box) -> Box:
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
    return _of(
        box.centre * scale.view(shape) + moved.view(shape), box.radius * scale.abs().view(shape)
    )


def _of(centre: Tensor, radius: Tensor) -> Box:
    return Box(centre - radius, centre + radius)


def _cast(layer: Any, box: Box) -> tuple[Tensor, Any]:  # noqa: ANN401 - the bias may be None
    """Weight and bias in the dtype and on the device of the box."""
    bias = None if layer.bias is None else layer.bias.to(box.lower)
    return layer.weight.to(box.lower), bias


def _always(_layer: nn.Module) -> bool:
    return True


def _never(_layer: nn.Module) -> bool:
    return False


_RULES: Mapping[type[nn.Module] | None, tuple[Callable[..., Box], Callable[[Any], bool]]] = {
    **dict.fromkeys(
        (
            *(Ramp, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d),
            *(nn.ReLU, nn.ReLU6, nn.SELU, nn.Sigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanh),
            *(nn.Hardsigmoid, nn.Hardtanh, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
        ),
        (_ends, _always),
    ),
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

_CHANGED_IN_TRAINING = (nn.Dropout, nn.Dropout2d, nn.BatchNorm1d, nn.BatchNorm2d)
