"""The user's model is a guest: whatever is done with it, it leaves as it came."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from leery.errors import InputError, UnsupportedModelError, brief

__all__ = ["check_logits", "device_of", "guest", "run_model", "unwrapped"]


_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside what ``torch.compile`` returns; other modules as they are.

    Raises:
        InputError: for what is no module.
        UnsupportedModelError: for a TorchScript module, whose Python code is lost.
    """
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, nn.Module):
        message = (
            f"expected a torch.nn.Module as classifier, got {type(inner).__name__}; wrap it in one"
        )
        raise InputError(message)
    if isinstance(inner, torch.jit.ScriptModule):
        message = (
            "expected a torch.nn.Module with its Python code, got a TorchScript module; pass the "
            "module that it was made of"
        )
        raise UnsupportedModelError(message)
    return inner


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def run_model(model: nn.Module, batch: Tensor) -> Tensor:
    """The logits ``(N, classes)`` of a batch on the model's device.

    Raises:
        InputError: when the model does not accept the batch.
        UnsupportedModelError: when it returns anything but logits of at least two classes.
    """
    try:
        # A copy: a forward may write into its input, and the images are the user's.
        logits = model(batch.clone())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        message = (
            f"expected images that the model accepts, got shape {tuple(batch.shape)} and "
            f"{batch.dtype}, which it refuses ({brief(error)}); check shape and type"
        )
        raise InputError(message) from error
    return check_logits(logits, len(batch))


def check_logits(logits: object, count: int) -> Tensor:
    """What a model returned, refused unless it is logits ``(count, classes)``.

    Raises:
        UnsupportedModelError: when it is anything but logits of at least two classes.
    """
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:  # noqa: PLR2004
        message = (
            f"expected a model that returns logits ({count}, classes), got {shape}; "
            "wrap it in a module that does"
        )
        raise UnsupportedModelError(message)
    if logits.shape[1] < 2:  # noqa: PLR2004 - a choice
        message = (
            "expected logits of at least 2 classes, got 1; wrap the model so that it returns "
            "torch.cat([torch.zeros_like(logit), logit], 1)"
        )
        raise UnsupportedModelError(message)
    return logits


@contextmanager
def guest(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode for a while; modes and random states are restored, come what may.

    The flags are set directly, not through ``model.eval()``, because models may override that
    with side effects. Random numbers that the model draws from the global generators meanwhile
    are forgotten: those generators stand afterwards where they stood before. One thread at a time
    has a model as guest, since its modes are the model's own.
    """
    with _lock_of(model):
        yield from _visiting(model)


def _lock_of(model: nn.Module) -> AbstractContextManager[bool]:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


def _visiting(model: nn.Module) -> Iterator[nn.Module]:
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    accelerators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=accelerators):
        try:
            for module, _ in modes:
                module.training = False
            yield model
        finally:
            for module, mode in modes:
                module.training = mode
