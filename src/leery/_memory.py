"""How memory is laid out and used again, where that decides about speed."""

from functools import cache

import torch
from torch import Tensor

__all__ = ["fast_layout", "has_fast_layout", "keep_freed_memory"]

_LARGEST_TUNED = 2**25 - 2**15
"""Bytes: a little below the 32 MiB up to which glibc learns from what is freed."""


@cache
def keep_freed_memory() -> None:
    """Have freed memory used again, where it would be given back and asked for anew.

    glibc gives back what is freed beyond twice the largest block that was ever freed; to get it
    again page by page can take longer than what is computed in it. One block that is freed unused
    sets that bound to its highest, 64 MiB. Elsewhere this does nothing.

    Source:
        mallopt(3), M_MMAP_THRESHOLD, on the dynamic threshold.
    """
    torch.empty(_LARGEST_TUNED, dtype=torch.uint8, device="cpu")


def has_fast_layout(images: Tensor) -> bool:
    """Whether :func:`fast_layout` is another one: of images ``(N, C, H, W)`` on a processor."""
    return images.ndim == 4 and images.device.type == "cpu"  # noqa: PLR2004 - N, C, H, W


def fast_layout(images: Tensor) -> Tensor:
    """A copy: images ``(N, C, H, W)`` on a processor have the channels last in memory.

    Convolutions and pooling keep the layout; pooling alone is several times as fast in it.
    """
    if not has_fast_layout(images):
        return images.clone()
    # Not contiguous(): of one channel it would leave the strides, which do not tell.
    return images.clone(memory_format=torch.channels_last)
