"""A replica of a classifier: other modules in eval mode, the same parameters and buffers.

Running the replica leaves the modes and attributes of the classifier alone, so that nothing has to
be undone and threads need not wait for each other.
"""

import functools
import random
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from leery.errors import raise_machine_fault
from leery.models._shortcut import two_images

__all__ = ["Replicas", "python_randomness", "python_randomness_kept"]

_REGISTRIES = ("_parameters", "_buffers", "_modules")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")

_TOLERANCE = 1e-4
"""Largest relative difference of two outputs that is attributed to rounding."""

Run = Callable[[nn.Module, Tensor], Tensor]
"""Function that returns the logits of a model for a batch."""


class _ReachedBackError(Exception):
    """The replica ran a module of the classifier itself."""


@dataclass
class _Replicas:
    """The replicas of a classifier, and what they were made from.

    Attributes:
        state: state of the classifier when they were made.
        idle: replicas that are not in use; each thread uses its own.
        trusted: result of the trial, by shape, dtype and device of the images.
    """

    state: object
    idle: list[nn.Module] = field(default_factory=list)
    trusted: dict[object, bool] = field(default_factory=dict)


class Replicas:
    """The replicas of classifiers, used only after a successful trial on two images.

    A replica must return the logits of the classifier in eval mode, and run none of its modules. A
    classifier gets no replica if one of its attributes or hooks refers to one of its modules in a
    way that a replica cannot follow, if it has user hooks, or if its forward pass assigns
    attributes, writes into parameters or buffers, or draws random numbers.

    Args:
        plain: returns the logits of the classifier itself, run without a replica.
        run: returns the logits of a module in its present state.
    """

    def __init__(self, plain: Run, run: Run) -> None:
        self._plain = plain
        self._run = run
        self._replicas: weakref.WeakKeyDictionary[nn.Module, _Replicas] = (
            weakref.WeakKeyDictionary()
        )

    @contextmanager
    def borrowed(
        self, model: nn.Module, images: Tensor, lock: AbstractContextManager[object]
    ) -> Iterator[nn.Module | None]:
        """Lend this thread a replica of the classifier as it is now; None if there is none.

        Args:
            model: the classifier.
            images: ``(N, ...)``, whose shape, dtype and device select the trial.
            lock: lock that is held while a replica is looked up.
        """
        with lock:
            replicas, replica = self._found(model, images)
        try:
            yield replica
        finally:
            if replica is not None:
                replicas.idle.append(replica)

    def _found(self, model: nn.Module, images: Tensor) -> tuple[_Replicas, nn.Module | None]:
        state = _state(model)
        replicas = self._replicas.get(model)
        if replicas is None or replicas.state != state:
            replicas = self._replicas[model] = _Replicas(state)
        kind = images.shape[1:], images.dtype, images.device
        if replicas.trusted.get(kind) is False:
            return replicas, None
        replica = replicas.idle.pop() if replicas.idle else _made(model)
        if kind not in replicas.trusted:
            own = (
                replica
                if replica is None
                else self._passes(model, replica, two_images(images.detach()))
            )
            replicas.trusted[kind] = bool(own)
        return replicas, replica if replicas.trusted[kind] else None

    def _passes(self, model: nn.Module, replica: nn.Module, pair: Tensor) -> bool:
        """True if the replica returns the classifier's logits and has no side effects."""
        try:
            shown = pair.to(next(replica.parameters(), pair).device)
            truth = self._plain(model, shown)
            before, drawn, written = _state(replica), _random_states(), _written(replica)
            with (
                _not_run(model),
                torch.no_grad(),
                torch.random.fork_rng(devices=_devices(shown)),
                python_randomness_kept(),
            ):
                found = self._run(replica, shown)
                same = _random_states() == drawn and _state(replica) == before
        # User code can raise any exception; the classifier itself is then used.
        except Exception as error:
            raise_machine_fault(error)
            return False
        if not same or _written(replica) != written or found.shape != truth.shape:
            return False
        return bool((found - truth).norm() <= _TOLERANCE * truth.norm())


def python_randomness() -> object:
    """State of the global random generators of Python and numpy, comparable with ``==``."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 - whatever the model uses
    return random.getstate(), np.asarray(keys).tobytes(), rest


def _random_states() -> object:
    """State of the global random generators of Python, numpy and torch."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda)]
    return states, python_randomness()


@contextmanager
def python_randomness_kept() -> Iterator[None]:
    """Restore the global random generators of Python and numpy after a block."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - whatever the model uses
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - see above


def _devices(images: Tensor) -> list[torch.device]:
    return [images.device] if images.device.type == "cuda" else []


@contextmanager
def _not_run(model: nn.Module) -> Iterator[None]:
    """Raise if a module of the model runs in this thread."""
    modules = {id(module) for module in model.modules()}
    thread = threading.get_ident()

    def refuse(module: nn.Module, _inputs: object) -> None:
        if id(module) in modules and threading.get_ident() == thread:
            raise _ReachedBackError

    hook = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def _written(model: nn.Module) -> list[int]:
    """Version counters of the parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]  # noqa: SLF001


def _made(model: nn.Module) -> nn.Module | None:
    """New modules with the same parameters, buffers and attributes, in eval mode.

    None if an attribute refers to a module of the model in a way that cannot be followed, or if
    there are user hooks, which may store what they receive.
    """
    replicas = {id(module): object.__new__(type(module)) for module in model.modules()}
    try:
        for module in model.modules():
            replica = replicas[id(module)]
            if any(not _is_known(hook) for name in _HOOKS for hook in vars(module)[name].values()):
                return None
            attributes = {name: _rebound(value, replicas) for name, value in vars(module).items()}
            attributes["training"] = False
            for name in _REGISTRIES:
                attributes[name] = {
                    key: replicas.get(id(value), value) for key, value in vars(module)[name].items()
                }
            if any(_reaches(value, replicas) for value in attributes.values()):
                return None
            vars(replica).update(attributes)
    except (TypeError, KeyError, RecursionError):
        return None
    return replicas[id(model)]


def _is_known(hook: object) -> bool:
    """True for hooks of torch and leery, such as weight normalisation or inserted dropout."""
    owner = hook if hasattr(hook, "__qualname__") else type(hook)
    return str(owner.__module__).startswith(("torch.", "leery."))


def _rebound(value: Any, replicas: Mapping[int, nn.Module]) -> Any:  # noqa: ANN401 - any attribute
    """An attribute with every module of the classifier in it replaced by its replica."""
    if isinstance(value, nn.Module):
        return replicas.get(id(value), value)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _rebound(value.__self__, replicas))
    if isinstance(value, functools.partial):
        words = {name: _rebound(word, replicas) for name, word in value.keywords.items()}
        return functools.partial(
            _rebound(value.func, replicas), *_rebound(value.args, replicas), **words
        )
    if type(value) in (list, tuple, set):
        return type(value)(_rebound(entry, replicas) for entry in value)
    if isinstance(value, dict):
        # A copy of the same type: hooks that are added to the replica are not the classifier's.
        copied = value.copy()
        copied.update((key, _rebound(entry, replicas)) for key, entry in value.items())
        return copied
    return value


def _reaches(value: Any, modules: Mapping[int, object], depth: int = 6) -> bool:  # noqa: ANN401
    """True if a value refers, or may refer, to one of the classifier's own modules."""
    if isinstance(value, (Tensor, str, int, float, type, types.ModuleType, type(None))):
        return False
    if isinstance(value, nn.Module):
        return id(value) in modules
    if depth == 0:
        return True
    return any(_reaches(inner, modules, depth - 1) for inner in _referred(value))


def _referred(value: Any) -> Iterator[Any]:  # noqa: ANN401 - any attribute
    """Objects that a value refers to, except the globals of functions."""
    if isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        yield from (cell.cell_contents for cell in cells if cell != types.CellType())
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif hasattr(value, "__dict__"):
        yield from vars(value).values()


def _state(model: nn.Module) -> object:
    """Snapshot that compares equal until an attribute, parameter, submodule or hook is replaced.

    Identities suffice, because a replica keeps alive the objects that it was made from.
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


def _identities(value: Any, depth: int = 6) -> object:  # noqa: ANN401 - any attribute
    """Comparable identity of a value or, for containers, of their contents."""
    # Plain values are compared directly, because each access may create a new object.
    if value is None or isinstance(value, (int, float, str)):
        return type(value), value
    if depth and isinstance(value, dict):
        return [(key, _identities(value[key], depth - 1)) for key in value] if value else ()
    if depth and isinstance(value, (list, tuple, set)):
        return type(value), [_identities(entry, depth - 1) for entry in value]
    return id(value)
