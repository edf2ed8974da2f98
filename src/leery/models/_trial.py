"""Faster ways to run a model, trusted after a trial on two images and not before."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = ["Run", "Trial", "two_images"]

Run = Callable[[nn.Module, Tensor], Tensor]
"""What a model gives for a batch."""

_TOLERANCE = 1e-3
"""Of the length of the difference over the length of the truth: above what rounding does."""


class Trial:
    """Knows of each model, and each kind of input, whether a faster way gives the same.

    Args:
        plain: what is true of a model and some images; what it raises is the caller's.
        fast: what should be the same; where it raises, it is not.
    """

    def __init__(self, plain: Run, fast: Run) -> None:
        self._plain = plain
        self._fast = fast
        self._passed: WeakKeyDictionary[nn.Module, dict[object, bool]] = WeakKeyDictionary()

    def passed(self, model: nn.Module, batch: Tensor) -> bool:
        """Whether the faster way may be taken: tried once a kind, and when modules are new."""
        modules = tuple(map(id, model.modules()))
        kind = batch.shape[1:], batch.dtype, batch.device, modules
        passed = self._passed.setdefault(model, {})
        if kind not in passed:
            pair = two_images(batch.detach())
            truth = self._plain(model, pair)
            try:
                off = (self._fast(model, pair) - truth).norm()
                passed[kind] = bool(off <= _TOLERANCE * truth.norm())
            except torch.OutOfMemoryError:
                raise
            # A model's own code raises whatever it likes where it is not run as it expects.
            except Exception:
                passed[kind] = False
        return passed[kind]


def two_images(images: Tensor) -> Tensor:
    """The first image and one that differs from it, of the same kind."""
    first = images[:1]
    others = (images[-1:], first.flip(-1), torch.zeros_like(first), torch.ones_like(first))
    other = next(image for image in others if not torch.equal(image, first))
    return torch.cat([first, other])
