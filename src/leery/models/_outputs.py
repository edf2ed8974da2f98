"""Extraction of the logits from the output of a classifier."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from leery.errors import InputError, UnsupportedModelError
from leery.models._isolation import unwrapped

__all__ = ["Logits", "WithLogits", "logits_facts", "logits_of_facts", "with_logits"]

Logits = Callable[[Any], Tensor] | str | int | None
"""How to get the logits from a model's output: a function, a field name or an index; None if the
output is the logits or has a field ``logits``."""


class WithLogits(nn.Module):
    """Wrapper that returns only the logits of a model's output.

    Args:
        model: the classifier inside.
        logits: how to get the logits from its output.
    """

    def __init__(self, model: nn.Module, logits: Callable[[Any], Tensor] | str | int) -> None:
        super().__init__()
        self.model = model
        self.logits = logits
        # Not train(), which would change the mode of the model.
        self.training = model.training

    def extra_repr(self) -> str:
        """Where the logits are, which is part of the classifier's fingerprint."""
        return f"logits={logits_facts(self.logits)['where']!r}"

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
                f"expected {self.logits!r} in the output of the model, got {type(output).__name__} "
                "without it; correct logits="
            )
            raise UnsupportedModelError(message) from error


def logits_facts(logits: Logits) -> dict[str, str | int | None]:
    """JSON-serialisable form of a ``logits`` setting: a kind, and a name or an index."""
    if logits is None:
        return {"kind": "plain", "where": None}
    if callable(logits):
        return {"kind": "function", "where": getattr(logits, "__name__", type(logits).__name__)}
    return {"kind": "index" if isinstance(logits, int) else "field", "where": logits}


def logits_of_facts(facts: Mapping[str, Any], given: Logits) -> Logits:
    """Restore a ``logits`` setting from :func:`logits_facts` and the user's argument.

    Raises:
        InputError: when a function is required but missing, or the argument differs.
    """
    if facts["kind"] == "function":
        if not callable(given):
            message = (
                f"expected the function {facts['where']!r} that returns the logits, got {given!r}; "
                "pass the same logits= as to the detector"
            )
            raise InputError(message)
        return given
    where: Logits = facts["where"]
    if given is not None and given != where:
        message = f"expected logits={where!r}, as at the fit, got {given!r}; leave it out"
        raise InputError(message)
    return where


def with_logits(model: nn.Module, logits: Logits = None) -> nn.Module:
    """Wrap a classifier so that it returns its logits.

    Args:
        model: any classifier; wrappers of ``torch.compile`` and ``DataParallel`` are removed.
        logits: how to get the logits from its output.

    Raises:
        InputError: when the model is not a module, or ``logits`` is of another type.
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
