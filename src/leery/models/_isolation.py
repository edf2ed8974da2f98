"""Isolated runs of a user's model, whose state is restored afterwards."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from leery.errors import (
    InputError,
    LeeryError,
    UnsupportedModelError,
    brief,
    raise_machine_fault,
)
from leery.models._layout import fast_layout, has_fast_layout, keep_freed_memory
from leery.models._replica import Replicas, python_randomness_kept
from leery.models._shortcut import Shortcut

__all__ = [
    "assignments_undone",
    "check_logits",
    "device_of",
    "isolated",
    "model_errors",
    "own_tensors",
    "run_fast",
    "run_model",
    "unwrapped",
]


_ONE_AT_A_TIME = threading.RLock()

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)

_REGISTRIES = ("_parameters", "_buffers", "_modules")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of ``torch.compile`` and data parallelism.

    Raises:
        InputError: when it is not a module.
        UnsupportedModelError: for a TorchScript module, whose Python code is lost.
    """
    inner: Any = model
    while isinstance(inner, _PARALLEL) or hasattr(inner, "_orig_mod"):
        inner = getattr(inner, "_orig_mod", None) or inner.module
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
    for kind in ("_parameters", "_buffers"):
        for module in model.modules():
            tensors: list[Tensor | None] = [*vars(module)[kind].values()]
            for tensor in tensors:
                if tensor is not None:
                    return tensor.device
    return torch.device("cpu")


def own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers of a model; shared ones occur more than once.

    Several times as fast as ``model.parameters()``.
    """
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):  # noqa: SLF001 - no other way
            if tensor is not None:
                yield tensor


def run_model(model: nn.Module, batch: Tensor) -> Tensor:
    """The logits ``(N, classes)`` of a batch on the model's device.

    Raises:
        InputError: when the model does not accept the batch.
        UnsupportedModelError: when it returns anything but logits of at least two classes.
    """
    with model_errors(batch):
        # A copy: a forward may write into its input, and the images are the user's.
        logits = model(batch.clone())
    return check_logits(logits, len(batch))


def run_fast(model: nn.Module, batch: Tensor) -> Tensor:
    """:func:`run_model` in channels-last layout, if a trial with it gave the same logits.

    A model that relies on contiguous memory raises in this layout or, worse, does not.

    Raises:
        InputError, UnsupportedModelError: as :func:`run_model`.
    """
    if not has_fast_layout(model, batch) or not _LAYOUTS.gives_the_same(model, batch):
        return run_model(model, batch)
    with model_errors(batch):
        return check_logits(model(fast_layout(model, batch)), len(batch))


@torch.no_grad()
def _in_order(model: nn.Module, batch: Tensor) -> Tensor:
    return run_model(model, batch)


@torch.no_grad()
def _channels_last(model: nn.Module, batch: Tensor) -> Tensor:
    return model(fast_layout(model, batch))  # type: ignore[no-any-return]


_LAYOUTS = Shortcut(_in_order, _channels_last)


@contextmanager
def model_errors(batch: Tensor) -> Iterator[None]:
    """Turn any exception of a classifier on a batch into an InputError.

    Raises:
        InputError: when the classifier raises.
        MachineError: when it raises because of the machine.
    """
    try:
        yield
    except LeeryError:
        raise
    # A classifier is user code, which can raise any exception.
    except Exception as error:
        raise_machine_fault(error)
        message = (
            f"expected images that the model accepts, got shape {tuple(batch.shape)} and "
            f"{batch.dtype}, which it rejects ({brief(error)}); check shape, type and values"
        )
        raise InputError(message) from error


def check_logits(output: object, count: int) -> Tensor:
    """Extract the logits ``(count, classes)`` from a model's output.

    The output is the logits, or an object or mapping with a field ``logits``, as in Hugging Face's
    transformers.

    Raises:
        UnsupportedModelError: when there are none, or of fewer than two classes.
    """
    field = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    logits = field if isinstance(field, Tensor) and not isinstance(output, Tensor) else output
    if not isinstance(logits, Tensor):
        message = (
            f"expected a model that returns logits ({count}, classes), got {_named(logits)}; say "
            "where they are: Detector(model, logits=...) takes a field name, an index or a function"
        )
        raise UnsupportedModelError(message)
    if logits.ndim != 2 or len(logits) != count:  # noqa: PLR2004 - images and classes
        message = (
            f"expected a model that returns logits ({count}, classes), got {tuple(logits.shape)}; "
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


def _named(output: object) -> str:
    """Short description of a model's output."""
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)}"
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with {', '.join(map(str, output))}"
    return type(output).__name__


@contextmanager
def isolated(model: nn.Module, images: Tensor | None = None) -> Iterator[nn.Module]:
    """Provide the model in eval mode for a block, and restore its state afterwards.

    If ``images`` are given, it is a replica that shares parameters and buffers, if a trial gave the
    same logits; threads can then run in parallel. Otherwise it is the model itself: its modes are
    set directly, because models may override ``model.eval()`` with side effects; attribute
    assignments are undone; the global random generators of torch, Python and numpy are restored;
    and only one thread at a time runs it, because random states and torch's flags are global. The
    caller's autocast is off in both cases, so that a score depends only on the image.

    Args:
        model: any module.
        images: images on which it will be run, or some of them; None to run the model itself.
    """
    keep_freed_memory()
    if images is None or not len(images):
        with _in_place(model):
            yield model
        return
    with _REPLICAS.borrowed(model, images, _ONE_AT_A_TIME) as replica:
        if replica is None:
            with _in_place(model):
                yield model
        else:
            with torch.autocast(device_of(model).type, enabled=False):
                yield replica


@contextmanager
def _in_place(model: nn.Module) -> Iterator[None]:
    device = device_of(model)
    accelerators = [device] if device.type == "cuda" else []
    with (
        _ONE_AT_A_TIME,
        torch.random.fork_rng(devices=accelerators),
        python_randomness_kept(),
        torch.autocast(device.type, enabled=False),
        assignments_undone(model),
    ):
        for module in model.modules():
            module.training = False
        yield


def _plainly(model: nn.Module, images: Tensor) -> Tensor:
    """The logits of the model itself."""
    with _in_place(model), torch.no_grad():
        return run_model(model, images)


_REPLICAS = Replicas(_plainly, run_model)


@contextmanager
def assignments_undone(model: nn.Module) -> Iterator[None]:
    """Restore the attributes of all submodules, including modes, after a block.

    In-place changes of tensors and containers are not undone.
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
