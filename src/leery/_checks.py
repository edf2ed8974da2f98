"""Checks of what users pass: expected, got, what to do."""

import math
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from leery.errors import InputError

__all__ = [
    "Bounds",
    "all_finite",
    "bounds_like",
    "check_batch_size",
    "check_bound_values",
    "check_bounds",
    "check_count",
    "check_images",
    "check_labels",
    "check_seed",
    "clamp",
]


def check_images(images: Tensor, *, floating: bool = False) -> None:
    """Refuse what cannot be a batch of inputs.

    Args:
        images: a batch; the first dimension counts the inputs.
        floating: whether integers (token ids) are refused too.

    Raises:
        InputError: when it is no tensor, has no batch dimension, is empty or not finite.
    """
    if not isinstance(images, Tensor):
        message = f"expected images as a torch.Tensor, got {type(images).__name__}; convert them"
        raise InputError(message)
    if images.ndim < 2:  # noqa: PLR2004 - a batch and at least one dimension of its own
        message = (
            f"expected a batch of images (N, ...), got shape {tuple(images.shape)}; "
            "add the batch dimension with images.unsqueeze(0)"
        )
        raise InputError(message)
    if len(images) == 0:
        message = "expected at least one image, got an empty batch; pass a non-empty one"
        raise InputError(message)
    if floating and not images.is_floating_point():
        message = f"expected floating-point images, got {images.dtype}; convert with images.float()"
        raise InputError(message)
    if not all_finite(images):
        rows = torch.nonzero(~torch.isfinite(images).flatten(1).all(1)).flatten().tolist()
        message = (
            f"expected finite images, got NaN or infinity in {len(rows)} of {len(images)} "
            f"(the first at index {rows[0]}); remove or repair them"
        )
        raise InputError(message)


def all_finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity, told in one pass over memory and without a copy."""
    if not values.is_floating_point() or values.numel() == 0:
        return bool(torch.isfinite(values).all())
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(values.detach()))


def check_labels(labels: Tensor, count: int, classes: int | None = None) -> None:
    """Refuse what cannot be the labels of ``count`` images.

    Args:
        labels: int ``(count,)``.
        count: the number of images.
        classes: the number of classes, where it is known.

    Raises:
        InputError: when the shape, the type or the range is wrong.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        message = f"expected labels as an integer torch.Tensor, got {kind}; use labels.long()"
        raise InputError(message)
    if labels.shape != (count,):
        message = (
            f"expected one label an image, shape ({count},), got {tuple(labels.shape)}; "
            "pass images and labels of the same length"
        )
        raise InputError(message)
    # Some unsigned types have no extremes.
    low, high = (int(extreme) for extreme in torch.aminmax(labels.to(torch.int64)))
    if low < 0 or (classes is not None and high >= classes):
        limit = "0 or more" if classes is None else f"0..{classes - 1}"
        message = f"expected labels in {limit}, got {low}..{high}; correct the labels"
        raise InputError(message)


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size below one.

    Raises:
        InputError: when it is.
    """
    if batch_size < 1:
        message = f"expected a batch size of at least 1, got {batch_size}; pass a larger one"
        raise InputError(message)


def check_seed(seed: int) -> None:
    """Refuse a negative seed.

    Raises:
        InputError: when it is.
    """
    if seed < 0:
        message = f"expected a seed of at least 0, got {seed}; pass another one"
        raise InputError(message)


Bounds = tuple[float, float] | tuple[tuple[float, float], ...]
"""The lowest and the highest pixel value: two numbers, or a pair per channel."""


def bounds_like(bounds: Bounds, images: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest values, shaped to broadcast over images ``(N, channels, ...)``.

    Raises:
        InputError: when the images have another number of channels.
    """
    pairs = images.new_tensor(bounds)
    if pairs.ndim == 1:
        return pairs[0], pairs[1]
    if images.ndim < 3 or len(pairs) != images.shape[1]:  # noqa: PLR2004 - N, C and more
        message = (
            f"expected bounds for each channel of images {tuple(images.shape)}, got {len(pairs)} "
            "pairs; pass one pair per channel"
        )
        raise InputError(message)
    low, high = pairs.view(len(pairs), 2, *(1 for _ in images.shape[2:])).unbind(1)
    return low, high


def clamp(images: Tensor, bounds: Bounds) -> Tensor:
    """Images ``(N, ...)`` cut to the bounds."""
    low, high = bounds_like(bounds, images)
    return images.clamp(low, high)


def check_bound_values(bounds: object) -> Bounds:
    """The bounds as tuples of floats.

    Raises:
        InputError: when they are not finite, or low is not below high.
    """
    try:
        values = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    shaped = values.shape == (2,) or (values.ndim == 2 and values.shape[1] == 2)  # noqa: PLR2004
    if not shaped or not np.isfinite(values).all() or not (values[..., 0] < values[..., 1]).all():
        message = (
            "expected bounds (low, high) with low < high, or one such pair per channel, got "
            f"{bounds}; correct them"
        )
        raise InputError(message)
    if values.ndim == 1:
        return float(values[0]), float(values[1])
    return tuple((float(low), float(high)) for low, high in values)


def check_bounds(images: Tensor, bounds: Bounds) -> None:
    """Refuse images outside the pixel range.

    Raises:
        InputError: then.
    """
    low, high = bounds_like(bounds, images)
    if bool((images < low).any()) or bool((images > high).any()):
        message = (
            f"expected pixels within the bounds {bounds}, got {float(images.min()):g}.."
            f"{float(images.max()):g}; scale the images or pass bounds=(low, high) "
            "(--bounds LOW,HIGH)"
        )
        raise InputError(message)


def check_count(value: object, what: str, least: int = 1) -> int:
    """A whole number, refused when it is anything else or too small.

    Raises:
        InputError: then.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        message = (
            f"expected {what} as a whole number of at least {least}, got {value!r}; correct it"
        )
        raise InputError(message)
    return int(value)
