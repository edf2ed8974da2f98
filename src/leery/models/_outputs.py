"""Logits out of whatever a classifier returns."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from leery.errors import InputError, UnsupportedModelError
from leery.models._guest import unwrapped

__all__ = ["Logits", "WithLogits", "logits_facts", "logits_of_facts", "with_logits"]

Logits = Callable[[Any], Tensor] | str | int | None
"""Where the logits are in what a model returns: a function, a field name or an index; None where it
returns them as a tensor or in a field ``logits``."""


class WithLogits(nn.Module):
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


def logits_facts(logits: Logits) -> dict[str, str | int | None]:
    """Where the logits are, in types that JSON has: a kind, and a name or an index."""
    if logits is None:
        return {"kind": "plain", "where": None}
    if callable(logits):
        return {"kind": "function", "where": getattr(logits, "__name__", type(logits).__name__)}
    return {"kind": "index" if isinstance(logits, int) else "field", "where": logits}


def logits_of_facts(facts: Mapping[str, Any], given: Logits) -> Logits:
    """Where the logits are, from :func:`logits_facts` and what a user gave again.

    Raises:
        InputError: when a function is needed and was not given, or something else was given.
    """
    if facts["kind"] == "function":
        if not callable(given):
            message = (
                f"expected the function {facts['where']!r} that finds the logits, got {given!r}; "
                "pass logits= as it was given to the detector"
            )
            raise InputError(message)
        return given
    where: Logits = facts["where"]
    if given is not None and given != where:
        message = f"expected logits={where!r}, as at the fit, got {given!r}; leave it out"
        raise InputError(message)
    return where


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
    if logits is None or isinstance(inner, WithLogits):
        return inner
    if isinstance(logits, bool) or not (callable(logits) or isinstance(logits, (str, int))):
        message = (
            f"expected logits as a function, a field name or an index, got {logits!r}; correct it"
        )
        raise InputError(message)
    return WithLogits(inner, logits)
