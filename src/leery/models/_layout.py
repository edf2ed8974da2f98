"""How memory is laid out and used again, where that decides about speed."""

from functools import cache

import torch
from torch import Tensor, nn

from leery.tuning import FREED_BYTES, NARROW_FILTERS

__all__ = ["fast_layout", "has_fast_layout", "keep_freed_memory", "with_layout"]


@cache
def keep_freed_memory() -> None:
    """Have freed memory used again, where it would be given back and asked for anew.

    glibc gives back what is freed beyond twice the largest block that was ever freed; to get it
    again page by page can take longer than what is computed in it. One block that is freed unused
    sets that bound to its highest, 64 MiB. Elsewhere this does nothing.

    Source:
        mallopt(3), M_MMAP_THRESHOLD, on the dynamic threshold.
    """
    torch.empty(FREED_BYTES, dtype=torch.uint8, device="cpu")


def has_fast_layout(model: nn.Module, images: Tensor) -> bool:
    """Whether a model gets images ``(N, C, H, W)`` with their channels last in memory.

    On a processor, and if its convolutions are narrow: wide ones are faster in order.
    """
    if images.ndim != 4 or images.device.type != "cpu":  # noqa: PLR2004 - N, C, H, W
        return False
    filters = (len(tensor) for tensor in model.parameters() if tensor.ndim == 4)  # noqa: PLR2004
    return max(filters, default=0) <= NARROW_FILTERS


def with_layout(images: Tensor, *, channels_last: bool) -> Tensor:
    """A copy of images, with their channels last in memory if asked for."""
    # Not contiguous(): of one channel it would leave the strides, which do not tell.
    return images.clone(
        memory_format=torch.channels_last if channels_last else torch.preserve_format
    )


def fast_layout(model: nn.Module, images: Tensor) -> Tensor:
    """A copy of images in the layout that is fast for a model.

    Convolutions and pooling keep the layout; pooling alone is several times as fast with the
    channels last.
    """
    return with_layout(images, channels_last=has_fast_layout(model, images))
