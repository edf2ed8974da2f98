"""Checks of what users pass: expected, got, what to do."""

import torch
from torch import Tensor

from leery.errors import InputError

__all__ = [
    "all_finite",
    "check_batch_size",
    "check_bounds",
    "check_images",
    "check_labels",
    "check_seed",
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
    return bool(torch.stack(torch.aminmax(values.detach())).isfinite().all())


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
    low, high = int(labels.min()), int(labels.max())
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


def check_bounds(images: Tensor, bounds: tuple[float, float]) -> None:
    """Refuse images outside the pixel range, and a range that is none.

    Raises:
        InputError: then.
    """
    if not bounds[0] < bounds[1]:
        message = f"expected bounds (low, high) with low < high, got {bounds}; swap them"
        raise InputError(message)
    low, high = float(images.min()), float(images.max())
    if low < bounds[0] or high > bounds[1]:
        message = (
            f"expected pixels within the bounds {bounds}, got {low:g}..{high:g}; "
            "scale the images or pass bounds=(low, high)"
        )
        raise InputError(message)
