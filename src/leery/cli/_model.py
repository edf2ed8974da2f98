"""The user's classifier from the command line: a factory in Python, weights in a file."""

import importlib
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file
from torch import nn

from leery import inputs
from leery.errors import InputError, LeeryError, brief, listed
from leery.models import device_of, guest, run_model, unwrapped

__all__ = ["Model", "Weights", "check_repeatable", "load_model", "with_classes"]

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODULE:FACTORY",
        envvar="LEERY_MODEL",
        help="A function without arguments, or a class, that gives the classifier; looked for in "
        "this folder too. Its code is run.",
        show_default=False,
    ),
]

Weights = Annotated[
    Path | None,
    typer.Option(
        envvar="LEERY_WEIGHTS",
        help="Its weights: .safetensors, or a state dict that torch.save wrote (read without "
        "unpickling code). Without, they are what the factory gives.",
        show_default=False,
    ),
]


def load_model(name: str, weights: Path | None) -> nn.Module:
    """The classifier, in eval mode.

    Args:
        name: ``package.module:factory``.
        weights: of a state dict, or None.

    Raises:
        InputError: when the factory or the weights cannot be had or do not fit.
    """
    model = unwrapped(_made(name))
    if weights is not None:
        _fill(model, _state(weights), weights)
    return model.eval()


def with_classes(model: nn.Module, paths: list[Path], form: inputs.Format) -> inputs.Format:
    """The format with the classifier's number of classes, as its output for an input shows it.

    Raises:
        InputError: when it does not accept the input.
    """
    for item in inputs.read(paths, replace(form, labels_key=None)):
        if item.image is not None:
            with guest(model), torch.no_grad():
                logits = run_model(model, item.image.unsqueeze(0).to(device_of(model)))
            return replace(form, classes=logits.shape[1])
    return form


def check_repeatable(name: str, model: nn.Module) -> None:
    """Refuse a factory that gives other weights each time: nobody could load a detector for it.

    Raises:
        InputError: then.
    """
    again = unwrapped(_made(name))
    first, second = ([*made.parameters(), *made.buffers()] for made in (model, again))
    if len(first) != len(second) or not all(map(torch.equal, first, second)):
        message = (
            f"expected a factory that gives the trained classifier, got other weights each time "
            f"from {name}; pass --weights"
        )
        raise InputError(message)


def _made(name: str) -> nn.Module:
    module_name, _, factory_name = name.partition(":")
    if not module_name or not factory_name:
        message = f"expected MODULE:FACTORY as model, got {name!r}; name both"
        raise InputError(message)
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        factory = _found(module_name, factory_name)
        made: nn.Module = factory() if not isinstance(factory, nn.Module) else factory
    except LeeryError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        message = (
            f"expected a Python module {missing!r}, got none; install it or change to its folder"
        )
        raise InputError(message) from error
    # The user's code raises whatever it likes.
    except Exception as error:
        message = f"expected {name} to give a classifier, got {brief(error)}; mend its code"
        raise InputError(message) from error
    finally:
        sys.path.remove(here)
    return made


def _found(module_name: str, factory_name: str) -> Callable[[], nn.Module]:
    factory = getattr(importlib.import_module(module_name), factory_name, None)
    if not callable(factory):
        message = (
            f"expected a function or class {factory_name!r} in {module_name}, got "
            f"{type(factory).__name__}; correct the name"
        )
        raise InputError(message)
    return factory  # type: ignore[no-any-return]  # it is checked what it gives


def _state(path: Path) -> dict[str, Any]:
    """The tensors of a weights file by name; no code in it is run."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        message = f"expected weights at {path}, got no file; correct the path"
        raise InputError(message) from error
    except pickle.UnpicklingError as error:
        # torch's text is long and advises to run the code.
        message = (
            f"expected weights in {path} that can be read without running code, got a pickle of "
            "more than tensors; save model.state_dict() with safetensors.torch.save_file"
        )
        raise InputError(message) from error
    # torch.load raises what its parts raise: pickle, zip, struct, key and runtime errors.
    except Exception as error:
        message = (
            f"expected weights in {path} that can be read without running code, got "
            f"{brief(error)}; save model.state_dict() with safetensors.torch.save_file"
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


def _fill(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (RuntimeError, AttributeError, TypeError) as error:
        message = (
            f"expected the weights of {type(model).__name__} in {path}, got ones that do not fit "
            f"({brief(error)}); name the right file"
        )
        raise InputError(message) from error
    if missing or unexpected:
        message = (
            f"expected the weights of {type(model).__name__} in {path}, got a file without "
            f"{_some(missing)} and with {_some(unexpected)} besides; name the right file"
        )
        raise InputError(message)


def _some(names: list[str]) -> str:
    shown = listed(names[:3]) if names else "nothing"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown  # noqa: PLR2004 - shown
