"""Faster methods of running a model, used only if a trial on two images gives the same."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from leery.errors import raise_machine_fault

__all__ = ["Run", "Shortcut", "two_images"]

Run = Callable[[nn.Module, Tensor], Tensor]
"""Function that returns the logits of a model for a batch."""

_TOLERANCE = 1e-3
"""Largest relative difference that counts as rounding, as a ratio of Euclidean norms."""


class Shortcut:
    """A faster method of running a model, with a record of the models and inputs it works for.

    Args:
        plain: reference method; its exceptions propagate.
        fast: faster method; it is not used if it raises an exception.
    """

    def __init__(self, plain: Run, fast: Run) -> None:
        self._plain = plain
        self._fast = fast
        self._passed: WeakKeyDictionary[nn.Module, dict[object, bool]] = WeakKeyDictionary()

    def gives_the_same(self, model: nn.Module, batch: Tensor) -> bool:
        """True if the faster method is correct for this model and type of input.

        It is tried once per shape, dtype and device, and again if the model's modules change.
        """
        modules = tuple(map(id, model.modules()))
        kind = batch.shape[1:], batch.dtype, batch.device, modules
        passed = self._passed.setdefault(model, {})
        if kind not in passed:
            pair = two_images(batch.detach())
            truth = self._plain(model, pair)
            try:
                off = (self._fast(model, pair) - truth).norm()
                passed[kind] = bool(off <= _TOLERANCE * truth.norm())
            # User code that is run in an unexpected way can raise any exception.
            except Exception as error:
                raise_machine_fault(error)
                passed[kind] = False
        return passed[kind]


def two_images(images: Tensor) -> Tensor:
    """The first image and a different one of the same shape and type."""
    first = images[:1]
    others = (images[-1:], first.flip(-1), torch.zeros_like(first), torch.ones_like(first))
    other = next(image for image in others if not torch.equal(image, first))
    return torch.cat([first, other])
