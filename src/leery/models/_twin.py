"""A twin of a classifier: other modules in eval mode, the same parameters and buffers.

Running the twin leaves the modes and attributes of the classifier alone, so that nothing has to be
undone and threads need not wait for each other.
"""

import functools
import random
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from leery.models._trial import two_images

__all__ = ["Twins", "python_randomness", "python_randomness_kept"]

_REGISTRIES = ("_parameters", "_buffers", "_modules")

_TOLERANCE = 1e-4
"""The length of the difference of two outputs over the length of one that rounding explains."""

Run = Callable[[nn.Module, Tensor], Tensor]
"""Gives the logits of a model, as it is, for a batch."""


class _ReachedBackError(Exception):
    """The twin ran a module of the classifier itself."""


@dataclass
class _Twin:
    """A twin, and what it was made from.

    Attributes:
        module: the twin; None if there is none to be trusted.
        state: of the classifier when the twin was made.
        trusted: by the kind of images.
    """

    module: nn.Module | None
    state: object
    trusted: dict[object, bool] = field(default_factory=dict)


class Twins:
    """The twins of classifiers, each trusted after a trial on two images and not before.

    The trial compares the twin with the classifier in eval mode, while the classifier's own modules
    are in train mode and must not run. A classifier whose forward pass assigns attributes or draws
    random numbers gets no twin.

    Args:
        plain: gives the logits of the classifier itself, as the caller would run it without a twin.
        run: gives the logits of a module as it is.
    """

    def __init__(self, plain: Run, run: Run) -> None:
        self._plain = plain
        self._run = run
        self._twins: weakref.WeakKeyDictionary[nn.Module, _Twin] = weakref.WeakKeyDictionary()

    def find(self, model: nn.Module, images: Tensor) -> nn.Module | None:
        """The twin of a classifier as it is now; None where it must be run itself.

        Args:
            model: the classifier.
            images: ``(N, ...)``, to tell the kind of images, and for the trial.
        """
        twin = self._twins.get(model)
        state = _state(model)
        if twin is None or twin.state != state:
            twin = self._twins[model] = _Twin(_made(model), state)
        kind = images.shape[1:], images.dtype, images.device
        if twin.module is not None and kind not in twin.trusted:
            pair = two_images(images.detach())
            twin.trusted[kind] = self._passes(model, twin.module, pair)
        return twin.module if twin.trusted.get(kind) else None

    def _passes(self, model: nn.Module, twin: nn.Module, pair: Tensor) -> bool:
        """Whether the twin gives what the classifier gives, and does nothing else."""
        try:
            truth = self._plain(model, pair)
            before, drawn = _state(twin), _random_states()
            with (
                _roused(model),
                torch.no_grad(),
                torch.random.fork_rng(devices=_devices(pair)),
                python_randomness_kept(),
            ):
                found = self._run(twin, pair)
                same = _random_states() == drawn and _state(twin) == before
        except torch.OutOfMemoryError:
            raise
        # A model's own code raises whatever it likes; the classifier itself is then run instead.
        except Exception:
            return False
        if not same or found.shape != truth.shape:
            return False
        return bool((found - truth).norm() <= _TOLERANCE * truth.norm())


def python_randomness() -> object:
    """Where the generators of Python and numpy stand; equal when they stand alike."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 - whatever the model uses
    return random.getstate(), np.asarray(keys).tobytes(), rest


def _random_states() -> object:
    """The same, with the generators of torch."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda)]
    return states, python_randomness()


@contextmanager
def python_randomness_kept() -> Iterator[None]:
    """Forget what is drawn meanwhile from the global generators of Python and numpy."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - whatever the model uses
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - see above


def _devices(images: Tensor) -> list[torch.device]:
    return [images.device] if images.device.type == "cuda" else []


@contextmanager
def _roused(model: nn.Module) -> Iterator[None]:
    """The modules of a model in train mode, and none of them may run."""
    modules = {id(module) for module in model.modules()}
    modes = [(module, module.training) for module in model.modules()]

    def refuse(module: nn.Module, _inputs: object) -> None:
        if id(module) in modules:
            raise _ReachedBackError

    hook = register_module_forward_pre_hook(refuse)
    try:
        for module, _ in modes:
            module.training = True
        yield
    finally:
        hook.remove()
        for module, mode in modes:
            module.training = mode


def _made(model: nn.Module) -> nn.Module | None:
    """Other modules with the same parameters, buffers and attributes, in eval mode."""
    twins = {id(module): object.__new__(type(module)) for module in model.modules()}
    try:
        for module in model.modules():
            twin = twins[id(module)]
            attributes = {name: _rebound(value, twins) for name, value in vars(module).items()}
            attributes["training"] = False
            for name in _REGISTRIES:
                attributes[name] = {
                    key: twins.get(id(value), value) for key, value in vars(module)[name].items()
                }
            vars(twin).update(attributes)
    except (TypeError, RecursionError):
        return None
    return twins[id(model)]


def _rebound(value: Any, twins: Mapping[int, nn.Module]) -> Any:  # noqa: ANN401 - any attribute
    """An attribute with every module of the classifier in it replaced by its twin."""
    if isinstance(value, nn.Module):
        return twins.get(id(value), value)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _rebound(value.__self__, twins))
    if isinstance(value, functools.partial):
        words = {name: _rebound(word, twins) for name, word in value.keywords.items()}
        return functools.partial(_rebound(value.func, twins), *_rebound(value.args, twins), **words)
    if type(value) in (list, tuple, set):
        return type(value)(_rebound(entry, twins) for entry in value)
    if isinstance(value, dict):
        # A copy of the same type: hooks that are added to the twin are not the classifier's.
        copied = value.copy()
        copied.update((key, _rebound(entry, twins)) for key, entry in value.items())
        return copied
    return value


def _state(model: nn.Module) -> object:
    """Equal as long as no attribute, parameter, submodule or hook was replaced.

    Identities suffice: a twin holds what the classifier held when it was made.
    """
    return [
        (
            id(module),
            [
                (name, _identities(value))
                for name, value in vars(module).items()
                if name != "training"
            ],
        )
        for module in model.modules()
    ]


def _identities(value: object) -> object:
    if isinstance(value, dict):
        return [(key, id(entry)) for key, entry in value.items()]
    if isinstance(value, (list, tuple, set)):
        return [id(entry) for entry in value]
    # Small values that are made anew at each look are told by what they are.
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)
