"""Iteration over images that are given as one tensor or as batches (``DataLoader``)."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leery._checks import check_images, check_labels
from leery.errors import InputError

__all__ = ["Images", "halves", "image_batches", "known_count", "labelled_batches"]

Images = Tensor | Iterable[Any]
"""A tensor ``(N, ...)``, or an iterable of batches: tensors, or tuples that start with images and
labels."""


def labelled_batches(
    images: Images, labels: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of images with their labels, checked.

    Args:
        images: a tensor, or an iterable of batches. A batch is a tensor or a tuple that starts with
            the images and optionally their labels; further elements are ignored.
        labels: int ``(N,)`` for a tensor; None for an iterable, whose batches hold the labels.

    Yields:
        Images ``(n, ...)``, and labels int64 ``(n,)``, or None if there are none.

    Raises:
        InputError: when a batch has another form, or there is no batch.
    """
    if isinstance(images, Tensor):
        check_images(images)
        yield images, _whole_numbers(labels, len(images))
        return
    if isinstance(images, (np.ndarray, str, bytes)) or not isinstance(images, Iterable):
        message = (
            "expected images as a torch.Tensor or an iterable of batches such as a DataLoader, got "
            f"{type(images).__name__}; convert them"
        )
        raise InputError(message)
    if labels is not None:
        message = (
            "expected no separate labels with an iterable of batches, got some; let it yield "
            "(images, labels)"
        )
        raise InputError(message)
    empty = True
    for batch in images:
        empty = False
        found, truth = _parted(batch)
        check_images(found)
        yield found, _whole_numbers(truth, len(found))
    if empty:
        message = "expected at least one batch of images, got none; pass some"
        raise InputError(message)


def image_batches(images: Images) -> Iterator[Tensor]:
    """The images of :func:`labelled_batches`, without labels."""
    for batch, _ in labelled_batches(images):
        yield batch


def known_count(images: Images) -> int | None:
    """The number of images if it is known without reading them, else None."""
    if isinstance(images, Tensor):
        return len(images)
    loaded = getattr(images, "dataset", None)
    plain = isinstance(images, torch.utils.data.DataLoader) and isinstance(
        images.sampler, (torch.utils.data.SequentialSampler, torch.utils.data.RandomSampler)
    )
    return len(loaded) if plain and isinstance(loaded, Sized) else None


def _parted(batch: object) -> tuple[Tensor, Any]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        return batch[0], batch[1] if len(batch) > 1 else None
    message = (
        "expected batches that are a tensor of images or a tuple (images, labels), got "
        f"{type(batch).__name__}; wrap the loader so that it yields these"
    )
    raise InputError(message)


def _whole_numbers(labels: object, count: int) -> Tensor | None:
    """Convert integer labels to int64."""
    if labels is None:
        return None
    if isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex():
        labels = labels.to(torch.int64)
    check_labels(labels, count)  # type: ignore[arg-type]  # it is what this checks
    return labels  # type: ignore[return-value]


def halves(
    images: Tensor, labels: Tensor | None = None, *, seed: int = 0
) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """Split images and their labels into two random halves.

    Test sets are often sorted, so that their first half does not represent the whole.

    Args:
        images: ``(N, ...)``.
        labels: int ``(N,)``, or None.
        seed: random seed of the split.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    first, second = (
        (images[rows], None if labels is None else labels[rows]) for rows in order.tensor_split(2)
    )
    return first, second
