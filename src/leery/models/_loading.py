"""Loading of a user's classifier: factory, weights file, normalisation and device."""

import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from leery._files import check_opens, raise_reading_fault
from leery.errors import (
    InputError,
    LeeryError,
    brief,
    listed,
    machine_error,
    machine_fault,
    names_a_wrong_file,
    raise_machine_fault,
)
from leery.models._isolation import unwrapped
from leery.models._outputs import Logits, WithLogits, with_logits

__all__ = ["check_repeatable", "load_model", "loaded_object", "normalized", "user_code"]


class _Normalized(nn.Module):
    """Wrapper that normalises images for a classifier.

    Args:
        model: the classifier inside.
        mean: per channel.
        std: per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        # Not train(), which would change the mode of the model.
        self.training = model.training

    def forward(self, images: Tensor) -> Any:  # noqa: ANN401 - what the model returns
        """The output of the model for the normalised images."""
        shape = (-1, *(1 for _ in images.shape[2:]))
        return self.model((images - self.mean.view(shape)) / self.std.view(shape))


def normalized(
    model: nn.Module, mean: Sequence[float] | float, std: Sequence[float] | float
) -> nn.Module:
    """Wrap a classifier of normalised images so that it accepts unnormalised ones.

    Epsilon of attacks, sigma of noise and bounds are then in units of the unnormalised images.

    Args:
        model: takes ``(images - mean) / std``.
        mean: mean per channel, or one for all channels.
        std: standard deviation per channel, or one for all channels; above 0.

    Returns:
        A module on the model's device, whose submodule ``model`` is the classifier.

    Raises:
        InputError: when mean and std are not finite, of different lengths, or std not above 0.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> tuple(normalized(net, 0.5, 0.25)(torch.rand(3, 1, 2, 2)).shape)
        (3, 2)
    """
    inner = unwrapped(model)
    example = next((p for p in inner.parameters() if p.is_floating_point()), torch.empty(0))
    means, stds = (torch.as_tensor(values, dtype=torch.float64).flatten() for values in (mean, std))
    finite = bool(means.isfinite().all() and stds.isfinite().all() and (stds > 0).all())
    if not finite or len(means) != len(stds) or not len(means):
        message = (
            "expected a mean and a standard deviation above 0 for each channel, got "
            f"{means.tolist()} and {stds.tolist()}; correct them"
        )
        raise InputError(message)
    return _Normalized(inner, means.to(example), stds.to(example))


def load_model(
    name: str,
    weights: Path | None = None,
    *,
    logits: Logits = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | None = None,
) -> nn.Module:
    """Load a classifier, in eval mode.

    Args:
        name: ``package.module:factory``.
        weights: the file of a state dict, or None.
        logits: how to get the logits from its output.
        mean: mean per channel, for a classifier of normalised images; None for others.
        std: standard deviation per channel, together with ``mean``.
        device: device to which it is moved, such as "cuda"; None does not move it.

    Raises:
        InputError: when the factory, the weights or the device cannot be used.
        MachineError: when loading fails because of the machine, such as too many open files.
        MemoryError, torch.OutOfMemoryError: when memory runs out while the weights are read, or the
            classifier is moved to the device.
    """
    model = unwrapped(_made(name))
    if weights is not None:
        _fill(model, _state(weights), weights)
    if (mean is None) != (std is None):
        message = "expected both a mean and a standard deviation, got one of them; pass both"
        raise InputError(message)
    model = with_logits(model, logits)
    if mean is not None and std is not None:
        model = normalized(model, mean, std)
    return _moved(model, device).eval()


def check_repeatable(name: str, model: nn.Module) -> None:
    """Raise if a factory returns new weights at each call, since a detector could not be reloaded.

    Args:
        name: name of the factory.
        model: result of :func:`load_model` for that factory, without weights.

    Raises:
        InputError: when the weights differ.
    """
    again = unwrapped(_made(name)).state_dict()
    while isinstance(model, (_Normalized, WithLogits)):
        model = model.model
    first = model.state_dict()
    for key, tensor in again.items():
        if key not in first or not torch.equal(first[key].cpu(), tensor.cpu()):
            message = (
                "expected a factory that returns the trained classifier, got new weights each time "
                f"from {name}; pass --weights"
            )
            raise InputError(message)


def loaded_object(name: str, what: str) -> Any:  # noqa: ANN401 - whatever the module holds
    """Load an attribute of a Python module; the working folder is searched too.

    Args:
        name: ``package.module:attribute``.
        what: name of the kind of attribute in error messages, such as "metric".

    Raises:
        InputError: when there is no such module or attribute, or importing it fails.
        MachineError: when importing it fails because of the machine.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        message = f"expected MODULE:NAME as {what}, got {name!r}; give both"
        raise InputError(message)
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with user_code(f"to import a {what} as {name}"):
            found = getattr(importlib.import_module(module_name), attribute, None)
    finally:
        sys.path.remove(here)
    if not callable(found):
        got = "none" if found is None else type(found).__name__
        message = (
            f"expected a function or class {attribute!r} in {module_name}, got {got}; correct the "
            "name"
        )
        raise InputError(message)
    if here not in sys.path:
        # At the end, for modules beside this one that its functions import when they are called.
        sys.path.append(here)
    return found


def _made(name: str) -> nn.Module:
    factory: Callable[[], nn.Module] = loaded_object(name, "classifier")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        with user_code(f"{name} to return a classifier"):
            return factory if isinstance(factory, nn.Module) else factory()
    finally:
        sys.path.remove(here)


@contextmanager
def user_code(expected: str) -> Iterator[None]:
    """Raise one of leery's errors if the code of the user that runs inside the block fails.

    Args:
        expected: the beginning of the message, after "expected".

    Raises:
        InputError: when the block raises, or ends the program.
        MachineError: when it raises because of the machine, such as for lack of memory.
        LeeryError: the error itself, if it is one of leery's.
    """
    try:
        yield
    except LeeryError:
        raise
    # User code can raise any exception, or end the program.
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if machine_fault(error) is not None and not names_a_wrong_file(error):
            raise machine_error(brief(error), expected) from error
        if missing is not None:
            message = (
                f"expected a Python module {missing!r}, got none; install it or change to its "
                "folder"
            )
        else:
            message = f"expected {expected}, got {brief(error)}; correct its code"
        raise InputError(message) from error


def _moved(model: nn.Module, device: str | None) -> nn.Module:
    if device is None:
        return model
    try:
        return model.to(torch.device(device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        message = (
            f"expected a device that this torch can use, got {device!r} ({brief(error)}); name "
            "cpu, or one that torch.cuda or torch.mps knows"
        )
        raise InputError(message) from error


def _state(path: Path) -> dict[str, Any]:
    """The tensors of a weights file by name; no code in it is run."""
    if not path.is_file():
        message = f"expected weights at {path}, got no file; correct the path"
        raise InputError(message)
    try:
        check_opens(path)
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises what its parts raise: pickle, zip, struct, key and runtime errors. Its text
    # is long and recommends running the code.
    except Exception as error:
        raise_reading_fault(path, error)
        message = (
            f"expected weights in {path}, as safetensors or a state dict of torch.save, got a file "
            "that cannot be read as either without running code; save model.state_dict()"
        )
        raise InputError(message) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            return dict(found[key])
    if not isinstance(found, dict):
        message = (
            f"expected a state dict in {path}, got {type(found).__name__}; save model.state_dict()"
        )
        raise InputError(message)
    return dict(found)


def _fill(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    state = _without_prefixes(state, model.state_dict().keys())
    try:
        missing, unexpected = model.load_state_dict(dict(state), strict=False)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise_machine_fault(error)
        message = (
            f"expected the weights of {type(model).__name__} in {path}, got ones that do not fit "
            f"({brief(error)}); pass the right file"
        )
        raise InputError(message) from error
    if missing or unexpected:
        message = (
            f"expected the weights of {type(model).__name__} in {path}, got a file without "
            f"{_some(missing)} and with {_some(unexpected)} in addition; pass the right file"
        )
        raise InputError(message)


def _without_prefixes(state: Mapping[str, Any], known: Collection[str]) -> Mapping[str, Any]:
    """The state dict without a prefix that a wrapper added to every name.

    Other entries of a trainer's checkpoint, such as a loss, are dropped.
    """
    names = set(known)
    if not names or names & set(state):
        return state
    first = next(iter(names))
    for key in state:
        prefix = key.removesuffix(first)
        if prefix != key and prefix.endswith(".") and all(f"{prefix}{n}" in state for n in names):
            return {name: state[f"{prefix}{name}"] for name in names}
    return state


def _some(names: Sequence[str]) -> str:
    shown = listed(names[:3]) if names else "nothing"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown  # noqa: PLR2004 - shown
