"""Plain loop that runs every pass through the whole model, with fixed draws.

It is the reference: the engine must match it where the graph can be captured. Where it cannot, this
loop is used.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from leery.errors import UnsupportedModelError, brief, raise_machine_fault
from leery.mc_dropout._masks import Masks, Site
from leery.mc_dropout._random_mode import RandomCall, RandomOpMode
from leery.mc_dropout._random_ops import Kind
from leery.mc_dropout._train_modes import dropout_layers, dropout_on, own_modules
from leery.models import (
    assignments_undone,
    check_logits,
    check_recorded,
    forward,
    python_randomness,
    recorded_layers,
    run_model,
)

__all__ = ["PlainLoop"]


@dataclass(frozen=True)
class PlainLoop:
    """A model and its random operations. All methods require the model inside ``isolated``.

    Attributes:
        model: the user's model.
        layers: layers that are read.
        train_modules: the names of the submodules that are in train mode during a pass.
        sites: the random operations, in the order of the calls.
        caveat: dropout that a pass may omit, and why; "" if none.
    """

    model: nn.Module
    layers: tuple[str, ...]
    train_modules: frozenset[str]
    sites: tuple[Site, ...]
    caveat: str = ""

    @classmethod
    def find(cls, model: nn.Module, layers: tuple[str, ...], pair: Tensor) -> "PlainLoop":
        """Find the random operations by running the model on two images and on three.

        Args:
            model: any classifier.
            layers: layers to read.
            pair: two images on the model's device.

        Raises:
            UnsupportedModelError: when the model draws in eval mode, draws differently for another
                number of images, or writes into its own tensors.
            InputError: when it does not accept the images.
        """
        if _calls(model, pair, frozenset()):
            message = (
                "expected a model that is deterministic in eval mode, got one that is not; "
                "pass training=self.training to functional dropout"
            )
            raise UnsupportedModelError(message)
        names, caveat = _drawing_modules(model, pair)
        with _tensors_restored(model):
            two = _calls(model, pair, names)
            three = _calls(model, torch.cat([pair, pair[:1]]), names)
        if [call.what for call in two] != [call.what for call in three]:
            got = f"{len(two)} draws for two images and {len(three)} for three"
            raise _not_alike(got)
        sites = [
            Site.between(*one.what, shapes=(one.shape, other.shape))
            for one, other in zip(two, three, strict=True)
        ]
        return cls(model, layers, names, tuple(sites), caveat)

    def without_dropout(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(N, classes)`` and layers ``(N, ...)`` in eval mode."""
        return forward(self.model, batch, self.layers)

    def one_pass(self, batch: Tensor, masks: Masks, index: int) -> Tensor:
        """Logits ``(N, classes)`` of pass ``index``."""
        return self.one_pass_and_layers(batch, masks, index, ())[0]

    def one_pass_and_layers(
        self, batch: Tensor, masks: Masks, index: int, layers: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(N, classes)`` and layers ``(N, ...)`` of pass ``index``."""
        waiting = list(zip(self.sites, masks.draws, strict=True))[::-1]

        def decide(call: RandomCall) -> object:
            site, draws = waiting.pop() if waiting else (None, None)
            if site is None or draws is None or not site.fits(call.shape, len(batch)):
                got = f"another draw of shape {call.shape}"
                raise _not_alike(got)
            return call.with_draw(site.spread(draws[index], len(batch)))

        with (
            dropout_on(self.model, self.train_modules),
            recorded_layers(self.model, layers) as seen,
            RandomOpMode(decide),
        ):
            logits = run_model(self.model, batch)
        check_recorded(layers, seen)
        return logits, seen

    def pass_without_dropping(self, batch: Tensor) -> Tensor | None:
        """Logits ``(N, classes)`` in train mode with nothing dropped; None if unknown."""
        known = True

        def decide(call: RandomCall) -> object:
            nonlocal known
            value = call.without_dropping()
            known = known and value is not None
            return call.with_draw(_ones(call, batch)) if value is None else value

        with dropout_on(self.model, self.train_modules), RandomOpMode(decide):
            logits = run_model(self.model, batch)
        return logits if known else None


@dataclass(frozen=True)
class _Call:
    """A random operation that was recorded in a forward pass.

    Attributes:
        what: the submodule that calls it, the kind of draw, the rate.
        shape: shape of the draw.
    """

    what: tuple[str, Kind, float | None]
    shape: tuple[int, ...]


class _RunningModules:
    """Which submodules of a model this thread is running.

    torch's hooks of all modules belong to the process, and other threads run other modules.

    Attributes:
        innermost: the name of the submodule that was called last and has not returned; "" for the
            model itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._thread = threading.get_ident()
        self._entered: list[str] = []

    @property
    def innermost(self) -> str:
        return self._entered[-1] if self._entered else ""

    def __enter__(self) -> Self:
        self._hooks = (
            register_module_forward_pre_hook(lambda module, _inputs: self._enter(module)),
            register_module_forward_hook(
                lambda module, _inputs, _output: self._leave(module), always_call=True
            ),
        )
        return self

    def __exit__(self, *_error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _is_followed(self, module: nn.Module) -> bool:
        return module in self._names and threading.get_ident() == self._thread

    def _enter(self, module: nn.Module) -> None:
        if self._is_followed(module):
            self._entered.append(self._names[module])

    def _leave(self, module: nn.Module) -> None:
        if self._is_followed(module):
            self._entered.pop()


def _calls(model: nn.Module, batch: Tensor, names: frozenset[str]) -> list[_Call]:
    """The random operations of a forward pass with those submodules in train mode.

    Raises:
        UnsupportedModelError: when the pass does not return logits.
        InputError: when the model does not accept the batch.
    """
    before = python_randomness()
    try:
        found, output = _recorded_calls(model, batch, names)
    except Exception as error:
        raise_machine_fault(error)
        raise
    check_logits(output, len(batch))
    if python_randomness() != before:
        message = (
            "expected a model that draws random numbers with torch, got one that draws from Python "
            "or numpy; use torch.rand"
        )
        raise UnsupportedModelError(message)
    return found


def _recorded_calls(
    model: nn.Module, batch: Tensor, names: frozenset[str]
) -> tuple[list[_Call], object]:
    """The random operations of a forward pass, and its output."""
    found: list[_Call] = []
    running = _RunningModules(model)

    def decide(call: RandomCall) -> object:
        found.append(_Call((running.innermost, call.operation.kind, call.rate), call.shape))
        value = call.without_dropping()
        return call.with_draw(_ones(call, batch)) if value is None else value

    with dropout_on(model, names), running, RandomOpMode(decide):
        output = run_model(model, batch) if not names else model(batch.clone())
    return found, output


def _ones(call: RandomCall, batch: Tensor) -> Tensor:
    return torch.ones(call.shape, device=batch.device)


def _drawing_modules(model: nn.Module, pair: Tensor) -> tuple[frozenset[str], str]:
    """The minimal set of submodules that must be in train mode for all dropout to be on.

    A module may do more than dropout in train mode, so custom modules stay in eval mode unless they
    draw, or pass their mode to a module that does.

    Returns:
        Their names, and a caveat if some dropout cannot be found, else "".
    """
    layers, own = dropout_layers(model), own_modules(model)
    everything, output, failure = _attempted_calls(model, pair, layers | own)
    if failure:
        return layers, f"only torch's dropout layers act: the model in train mode raises {failure}"
    drawing = own & frozenset(call.what[0] for call in everything)
    if not isinstance(output, Tensor):
        # Several outputs, as from auxiliary heads, whose modules must stay in eval mode.
        return layers | drawing, ""
    around = frozenset(
        name for name in own if any(below.startswith(f"{name}.") or not name for below in drawing)
    )
    for names in (layers | drawing, layers | drawing | around):
        found, _, failure = _attempted_calls(model, pair, names)
        if not failure and found == everything:
            return names, ""
    return layers | own, ""


def _attempted_calls(
    model: nn.Module, pair: Tensor, names: frozenset[str]
) -> tuple[list[_Call], object, str]:
    """The result of :func:`_recorded_calls`, and its error, or "" if it succeeded.

    The model's tensors are restored.
    """
    try:
        with _tensors_restored(model, quietly=True):
            return *_recorded_calls(model, pair, names), ""
    # User code in a mode that it may not be made for can raise any exception.
    except Exception as error:
        raise_machine_fault(error)
        return [], None, brief(error)


@contextmanager
def _tensors_restored(model: nn.Module, *, quietly: bool = False) -> Iterator[None]:
    """Restore the model's parameters and buffers after a forward pass that writes to them.

    Args:
        model: model whose tensors are restored.
        quietly: True to raise no error about writes.

    Raises:
        UnsupportedModelError: when something was written, unless ``quietly``.
    """
    tensors = [
        tensor for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_inference()
    ]
    before = [(tensor, tensor._version, tensor.detach().clone()) for tensor in tensors]  # noqa: SLF001 - version counter
    held = [*model.parameters(), *model.buffers()]
    written = False
    try:
        with assignments_undone(model):
            yield
            now = [*model.parameters(), *model.buffers()]
            written = list(map(id, now)) != list(map(id, held))
    finally:
        for tensor, version, value in before:
            if tensor._version != version:  # noqa: SLF001 - version counter
                written = True
                tensor.detach().copy_(value)
    if written and not quietly:
        message = (
            "expected a forward that does not write to parameters and buffers while "
            "dropout is on, got one that does; move the write out of the modules with dropout"
        )
        raise UnsupportedModelError(message)


def _not_alike(got: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"expected random draws that do not depend on the images, got {got}; make dropout "
        "independent of the images"
    )
