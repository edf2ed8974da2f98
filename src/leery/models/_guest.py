"""The user's model is a guest: whatever is done with it, it leaves as it came."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from leery.errors import InputError, LeeryError, UnsupportedModelError, brief
from leery.models._layout import fast_layout, has_fast_layout, keep_freed_memory
from leery.models._trial import Trial

__all__ = [
    "assignments_undone",
    "check_logits",
    "device_of",
    "guest",
    "python_randomness",
    "refused",
    "run_fast",
    "run_model",
    "unwrapped",
]


_ONE_AT_A_TIME = threading.RLock()

_REGISTRIES = ("_parameters", "_buffers", "_modules")


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
    with refused(batch):
        # A copy: a forward may write into its input, and the images are the user's.
        logits = model(batch.clone())
    return check_logits(logits, len(batch))


def run_fast(model: nn.Module, batch: Tensor) -> Tensor:
    """:func:`run_model` with the channels last in memory, where that was seen to give the same.

    A model that views memory in order refuses the layout or, worse, does not.

    Raises:
        InputError, UnsupportedModelError: as :func:`run_model`.
    """
    if not has_fast_layout(model, batch) or not _LAYOUTS.passed(model, batch):
        return run_model(model, batch)
    with refused(batch):
        return check_logits(model(fast_layout(model, batch)), len(batch))


@torch.no_grad()
def _in_order(model: nn.Module, batch: Tensor) -> Tensor:
    return run_model(model, batch)


@torch.no_grad()
def _channels_last(model: nn.Module, batch: Tensor) -> Tensor:
    return model(fast_layout(model, batch))  # type: ignore[no-any-return]


_LAYOUTS = Trial(_in_order, _channels_last)


@contextmanager
def refused(batch: Tensor) -> Iterator[None]:
    """What torch and indexing raise over a batch becomes one error of leery's.

    Raises:
        InputError: then.
    """
    try:
        yield
    except (LeeryError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, IndexError) as error:
        message = (
            f"expected images that the model accepts, got shape {tuple(batch.shape)} and "
            f"{batch.dtype}, which it refuses ({brief(error)}); check shape, type and values"
        )
        raise InputError(message) from error


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
    """The model in eval mode for a while; what is assigned in it meanwhile is undone.

    The mode is set directly, not through ``model.eval()``, because models may override that with
    side effects. Random numbers that the model draws from the global generators of torch, Python
    and numpy meanwhile are forgotten: those stand afterwards where they stood before. The caller's
    autocast is off: a score is a function of the image alone. One thread at a time has a guest,
    since random states and the flags of torch are the process's.
    """
    keep_freed_memory()
    device = device_of(model)
    accelerators = [device] if device.type == "cuda" else []
    with (
        _ONE_AT_A_TIME,
        torch.random.fork_rng(devices=accelerators),
        _python_randomness_kept(),
        torch.autocast(device.type, enabled=False),
        assignments_undone(model),
    ):
        for module in model.modules():
            module.training = False
        yield model


@contextmanager
def assignments_undone(model: nn.Module) -> Iterator[None]:
    """Attributes of all submodules are afterwards what they were before, modes among them.

    What is written into a tensor or container in place stays.
    """
    before = [
        (module, dict(vars(module)), [dict(vars(module)[name]) for name in _REGISTRIES])
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, registries in before:
            found = vars(module)
            for name in found.keys() - attributes.keys():
                del found[name]
            found.update(attributes)
            for name, held in zip(_REGISTRIES, registries, strict=True):
                registry = found[name]
                if list(registry) != list(held) or any(
                    registry[key] is not value for key, value in held.items()
                ):
                    registry.clear()
                    registry.update(held)


def python_randomness() -> object:
    """Where the generators of Python and numpy stand; equal when they stand alike."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 - whatever the model uses
    return random.getstate(), np.asarray(keys).tobytes(), rest


@contextmanager
def _python_randomness_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - whatever the model uses
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - see above
