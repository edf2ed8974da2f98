"""Logits out of whatever a classifier returns."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from leery.errors import InputError, UnsupportedModelError
from leery.models._guest import unwrapped

__all__ = ["Logits", "with_logits"]

Logits = Callable[[Any], Tensor] | str | int | None
"""Where the logits are in what a model returns: a function, a field name or an index; None where it
returns them as a tensor or in a field ``logits``."""


class _WithLogits(nn.Module):
    """A classifier that returns one of the things that the model inside returns.

    Args:
        model: the classifier inside.
        logits: where its logits are.
    """

    def __init__(self, model: nn.Module, logits: Callable[[Any], Tensor] | str | int) -> None:
        super().__init__()
        self.model = model
        self.logits = logits
        # Not train(), which would reach into the model.
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """The logits of a batch of images."""
        output = self.model(images)
        try:
            if callable(self.logits):
                return self.logits(output)
            if isinstance(self.logits, int):
                return output[self.logits]  # type: ignore[no-any-return]
            if isinstance(output, Mapping):
                return output[self.logits]  # type: ignore[no-any-return]
            return getattr(output, self.logits)  # type: ignore[no-any-return]
        except (LookupError, AttributeError, TypeError) as error:
            message = (
                f"expected {self.logits!r} in what the model returns, got {type(output).__name__} "
                "without it; correct logits="
            )
            raise UnsupportedModelError(message) from error


def with_logits(model: nn.Module, logits: Logits = None) -> nn.Module:
    """The classifier as a module whose logits leery finds.

    Args:
        model: any classifier; what ``torch.compile`` and ``DataParallel`` put around it is removed.
        logits: where its logits are.

    Raises:
        InputError: when the model is no module, or ``logits`` is nothing of this kind.
        UnsupportedModelError: for a TorchScript module.
    """
    inner = unwrapped(model)
    if logits is None or isinstance(inner, _WithLogits):
        return inner
    if isinstance(logits, bool) or not (callable(logits) or isinstance(logits, (str, int))):
        message = (
            f"expected logits as a function, a field name or an index, got {logits!r}; correct it"
        )
        raise InputError(message)
    return _WithLogits(inner, logits)
