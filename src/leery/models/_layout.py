"""Memory layout of images and reuse of freed memory, for speed."""

from functools import cache

import torch
from torch import Tensor, nn

from leery.tuning import FREED_BYTES, NARROW_FILTERS

__all__ = ["fast_layout", "has_fast_layout", "keep_freed_memory", "with_layout"]


@cache
def keep_freed_memory() -> None:
    """Make the allocator reuse freed memory instead of returning it to the system.

    glibc returns freed memory beyond twice the size of the largest block ever freed, and the page
    faults of getting it back can take longer than the computation. Freeing one unused block raises
    that limit to its maximum, 64 MiB. With other allocators this has no effect.

    Source:
        mallopt(3), M_MMAP_THRESHOLD, on the dynamic threshold.
    """
    torch.empty(FREED_BYTES, dtype=torch.uint8, device="cpu")


def has_fast_layout(model: nn.Module, images: Tensor) -> bool:
    """True if a model is given images ``(N, C, H, W)`` in channels-last layout.

    This is so on a CPU for narrow convolutions; wide ones are faster in contiguous layout.
    """
    if images.ndim != 4 or images.device.type != "cpu":  # noqa: PLR2004 - N, C, H, W
        return False
    filters = (len(tensor) for tensor in model.parameters() if tensor.ndim == 4)  # noqa: PLR2004
    return max(filters, default=0) <= NARROW_FILTERS


def with_layout(images: Tensor, *, channels_last: bool) -> Tensor:
    """A copy of images, in channels-last layout if requested."""
    # Not contiguous(), which would not change the ambiguous strides of a single channel.
    return images.clone(
        memory_format=torch.channels_last if channels_last else torch.preserve_format
    )


def fast_layout(model: nn.Module, images: Tensor) -> Tensor:
    """A copy of images in the layout that is fast for a model.

    Convolutions and pooling keep the layout; pooling alone is several times as fast with the
    channels last.
    """
    return with_layout(images, channels_last=has_fast_layout(model, images))
