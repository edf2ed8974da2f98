"""Validation of user input; each error says what was expected, what came and what to do."""

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
    "check_share",
    "clamp",
    "more_than_a_few",
]


def check_images(images: Tensor, *, floating: bool = False) -> None:
    """Raise unless the argument is a valid batch of inputs.

    Args:
        images: batch ``(N, ...)`` of N inputs.
        floating: True to reject integer tensors (token ids) too.

    Raises:
        InputError: when it is not a tensor, has no batch dimension, is empty or not finite.
    """
    if not isinstance(images, Tensor):
        message = (
            f"expected images as a torch.Tensor, got {type(images).__name__}; convert arrays "
            "with torch.from_numpy"
        )
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
    """True if no element is NaN or infinite; reads memory once and makes no copy."""
    if not values.is_floating_point() or values.numel() == 0:
        return bool(torch.isfinite(values).all())
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(values.detach()))


def check_labels(labels: Tensor, count: int, classes: int | None = None) -> None:
    """Raise unless the argument is a valid label tensor for ``count`` images.

    Args:
        labels: int ``(count,)``.
        count: the number of images.
        classes: number of classes; None if it is unknown.

    Raises:
        InputError: when the shape, the type or the range is wrong.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        message = f"expected labels as an integer torch.Tensor, got {kind}; use labels.long()"
        raise InputError(message)
    if labels.shape != (count,):
        message = (
            f"expected one label per image, shape ({count},), got {tuple(labels.shape)}; "
            "pass images and labels of the same length"
        )
        raise InputError(message)
    # torch.aminmax is not implemented for some unsigned types.
    low, high = (int(extreme) for extreme in torch.aminmax(labels.to(torch.int64)))
    if low < 0 or (classes is not None and high >= classes):
        limit = "0 or more" if classes is None else f"0..{classes - 1}"
        message = f"expected labels to be {limit}, got {low}..{high}; correct the labels"
        raise InputError(message)


def check_batch_size(batch_size: int) -> None:
    """Raise if the batch size is below one.

    Raises:
        InputError: when it is below one.
    """
    if batch_size < 1:
        message = f"expected a batch size of at least 1, got {batch_size}; pass a larger one"
        raise InputError(message)


def check_seed(seed: int) -> None:
    """Raise if the seed is negative.

    Raises:
        InputError: when it is negative.
    """
    if seed < 0:
        message = f"expected a seed of at least 0, got {seed}; pass another one"
        raise InputError(message)


Bounds = tuple[float, float] | tuple[tuple[float, float], ...]
"""Lowest and highest pixel value: one (low, high) pair, or one such pair per channel."""


def bounds_like(bounds: Bounds, images: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest values, shaped to broadcast over images ``(N, channels, ...)``.

    Raises:
        InputError: when the number of pairs is not the number of channels.
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
    """Images ``(N, ...)`` clipped to the bounds."""
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
    """Raise if a pixel is outside the bounds.

    Raises:
        InputError: when a pixel is outside the bounds.
    """
    low, high = bounds_like(bounds, images)
    if not images.numel():
        return
    # Of all pixels, or of each channel.
    over = (0, *range(2, images.ndim)) if low.ndim else tuple(range(images.ndim))
    smallest, largest = images.amin(over, keepdim=True), images.amax(over, keepdim=True)
    if not (bool((smallest >= low).all()) and bool((largest <= high).all())):
        message = (
            f"expected pixels within the bounds {bounds}, got {float(images.min()):g}.."
            f"{float(images.max()):g}; scale the images or pass bounds=(low, high) "
            "(--bounds LOW,HIGH)"
        )
        raise InputError(message)


def check_count(value: object, what: str, least: int = 1) -> int:
    """Return the argument as an int; raise unless it is a whole number of at least ``least``.

    Raises:
        InputError: when it is not a whole number or is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        message = (
            f"expected {what} as a whole number of at least {least}, got {value!r}; correct it"
        )
        raise InputError(message)
    return int(value)


def check_share(share: float) -> float:
    """A sentinel's share of the false alarms, checked.

    Raises:
        InputError: when it is not between 0 and 1.
    """
    if not 0 < share < 1:
        message = f"expected a sentinel's share of the alarms between 0 and 1, got {share}; use 0.5"
        raise InputError(message)
    return float(share)


def more_than_a_few(seen: int, images: int) -> bool:
    """True if more images were seen by the detector than an accident explains.

    Args:
        seen: the number of images that were seen; 3 are allowed, or 1 % if that is more.
        images: the total number of images.
    """
    return seen > max(3, images // 100)
