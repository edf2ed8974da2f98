"""Capture of a model's graph, with its random operations, for execution in parts.

``torch.export`` records the forward pass as ATen calls. In-place calls are replaced by functional
ones, so that any result can be computed once and used in every pass.
"""

import contextlib
import io
import logging
import operator
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from leery.errors import brief, raise_machine_fault
from leery.mc_dropout._random_ops import IN_PLACE, RANDOM
from leery.mc_dropout._train_modes import dropout_on
from leery.models import INPUT_OF

__all__ = [
    "ModelGraph",
    "NoGraphError",
    "arguments",
    "capture",
    "draws",
    "last_reads",
]

_ATEN = torch.ops.aten
_ANY_BATCH = 2**31
_BATCH_NORM_TRAINING = 5

Known = Mapping[fx.Node, Any]


class NoGraphError(Exception):
    """The graph cannot be captured or cannot be trusted; the message is a clause that says why."""


@dataclass(frozen=True)
class ModelGraph:
    """The nodes of a forward pass in execution order.

    Attributes:
        module: module that holds the model's own parameters, so that later changes take effect.
        input: the placeholder of the batch.
        nodes: every computing node, in order.
        output: the node of the logits.
    """

    module: fx.GraphModule
    input: fx.Node
    nodes: tuple[fx.Node, ...]
    output: fx.Node

    def active(self) -> list[fx.Node]:
        """The nodes of active random operations."""
        return [
            node
            for node in self.nodes
            if node.target in RANDOM and RANDOM[node.target].is_active(*_described(node))
        ]

    def layer_value(self, layer: str) -> fx.Node | None:
        """The node that holds the output or input of a layer; None if it is not in the graph."""
        name = layer.removeprefix(INPUT_OF)
        inside = [node for node in self.nodes if name in _module_path(node)]
        if not inside or not layer.startswith(INPUT_OF):
            return inside[-1] if inside else None
        entering = [
            parent
            for node in inside
            for parent in node.all_input_nodes
            if parent.op != "get_attr" and parent not in inside
        ]
        return entering[0] if entering else None

    def constant(self, node: fx.Node) -> Any:  # noqa: ANN401 - a parameter, buffer or constant
        """The value of a node that reads an attribute of the model."""
        return operator.attrgetter(str(node.target))(self.module)

    def evaluate(self, node: fx.Node, values: Known) -> Any:  # noqa: ANN401 - any node's value
        """The value of one node, given those it depends on."""
        args, kwargs = arguments(node, values)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def arguments(node: fx.Node, values: Known) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with which a node's operation is called."""
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__) if node.kwargs else {}
    return args, kwargs


def last_reads(
    steps: Sequence[tuple[fx.Node, Sequence[fx.Node]]], passing: Collection[fx.Node]
) -> list[list[fx.Node]]:
    """For each step, the temporary results that no later step reads.

    Args:
        steps: for each step, the node that it computes and the nodes that it reads.
        passing: nodes whose results are not needed at the end.
    """
    last: dict[fx.Node, int] = {}
    for place, (made, read) in enumerate(steps):
        last.update((node, place) for node in (made, *read) if node in passing)
    done: list[list[fx.Node]] = [[] for _ in steps]
    for node, place in last.items():
        done[place].append(node)
    return done


def draws(node: fx.Node) -> bool:
    """True if the result of a random operation is random, as its rate is not 0 or 1."""
    return RANDOM[node.target].draws(*_described(node))


def _described(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments as far as they can be known without running the graph."""
    args = fx.node.map_arg(node.args, lambda parent: parent.meta.get("val"))
    kwargs = fx.node.map_arg(node.kwargs, lambda parent: parent.meta.get("val"))
    return args, kwargs


def capture(model: nn.Module, names: frozenset[str], example: Tensor) -> ModelGraph:
    """Capture the model's forward pass with the named submodules in train mode.

    Args:
        model: inside :func:`leery.models.isolated`.
        names: names of the submodules that are in train mode during a pass.
        example: at least two inputs; the graph is valid for any number.

    Raises:
        NoGraphError: when the graph cannot be captured or is not valid for every batch size.
    """
    with dropout_on(model, names), _hooks_off(model), _silence(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = ({0: torch.export.Dim.DYNAMIC},)
        try:
            program = torch.export.export(model, (example,), dynamic_shapes=batch)
        except Exception as error:
            raise_machine_fault(error)
            message = f"torch.export cannot capture the forward pass ({brief(error)})"
            if "onstraints violated" in str(error):
                message = (
                    "the forward pass fixes the number of images; avoid Python loops over the "
                    "batch, and use images.shape[0] instead of len(images)"
                )
            raise NoGraphError(message) from error
    if any(limits.upper < _ANY_BATCH for limits in program.range_constraints.values()):
        message = "the forward pass restricts the number of images"
        raise NoGraphError(message)
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _make_functional(module)
    return _checked(module)


@contextmanager
def _hooks_off(model: nn.Module) -> Iterator[None]:
    """Temporarily remove the user's hooks, which would be called with fake tensors.

    Pre-hooks of torch and leery stay: weight normalisation, pruning and inserted dropout.
    """
    hooks = [
        (module, module._forward_hooks, module._forward_pre_hooks)  # noqa: SLF001 - no other way
        for module in model.modules()
    ]
    try:
        for module, _, before in hooks:
            known = {key: hook for key, hook in before.items() if _is_known(hook)}
            module._forward_hooks = OrderedDict()  # noqa: SLF001
            module._forward_pre_hooks = OrderedDict(known)  # noqa: SLF001
        yield
    finally:
        for module, after, before in hooks:
            module._forward_hooks = after  # noqa: SLF001
            module._forward_pre_hooks = before  # noqa: SLF001


def _is_known(hook: object) -> bool:
    owner = hook if hasattr(hook, "__qualname__") else type(hook)
    return str(owner.__module__).startswith(("torch.", "leery."))


@contextmanager
def _silence() -> Iterator[None]:
    """Silence standard error, to which torch.export prints graphs that it cannot complete."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _make_functional(module: fx.GraphModule) -> None:
    """Replace in-place calls by functional ones; later reads use the new result.

    Views become reshapes, which work for any memory layout. Batch norm uses its running statistics
    if it has them.
    """
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    memory = _shared_memory(module)
    for node in module.graph.nodes:
        overload = node.target
        if overload is _ATEN.view.default:
            node.target = _ATEN.reshape.default
        if overload is _ATEN.batch_norm.default and node.args[3] is not None:
            node.update_arg(_BATCH_NORM_TRAINING, arg=False)
        if not isinstance(overload, torch._ops.OpOverload) or not overload._schema.is_mutable:  # noqa: SLF001
            continue
        node.target = _functional_overload(overload)
        place = order[node]
        earlier = {other for other in memory[node] - {node.args[0]} if order[other] < place}
        if any(order[user] > place for other in earlier for user in other.users):
            message = f"{overload} writes into a view of a tensor that is read later"
            raise NoGraphError(message)
        node.args[0].replace_all_uses_with(
            node, delete_user_cb=lambda user, place=place: order[user] > place
        )


def _functional_overload(overload: Any) -> Any:  # noqa: ANN401 - ATen calls have no public type
    """The functional call that returns what an in-place call writes."""
    if overload in IN_PLACE:
        return IN_PLACE[overload]
    name = overload._schema.name.removeprefix("aten::")  # noqa: SLF001
    packet = getattr(_ATEN, name.removesuffix("_"), None)
    functional = getattr(packet, overload._overloadname, None)  # noqa: SLF001
    if functional is None or not name.endswith("_"):
        message = f"{overload} has no form without side effects"
        raise NoGraphError(message)
    return functional


def _shared_memory(module: fx.GraphModule) -> dict[fx.Node, set[fx.Node]]:
    """For each node, the nodes that may share its memory: views, bases and in-place results."""
    groups: dict[fx.Node, set[fx.Node]] = {}
    for node in module.graph.nodes:
        groups[node] = {node}
        base = node.args[0] if node.args else None
        if isinstance(base, fx.Node) and _may_alias(node):
            groups[base].add(node)
            groups[node] = groups[base]
    return groups


def _may_alias(node: fx.Node) -> bool:
    """True if a node's result may share the memory of its first argument."""
    if isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
        return any(found.alias_info is not None for found in node.target._schema.returns)  # noqa: SLF001
    return node.target is operator.getitem


def _checked(module: fx.GraphModule) -> ModelGraph:
    nodes: Sequence[fx.Node] = tuple(module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    computing = tuple(node for node in nodes if node.op in ("get_attr", "call_function"))
    (output,) = (node for node in nodes if node.op == "output")
    results = [result for result in output.all_input_nodes if result.op != "placeholder"]
    if len(inputs) != 1 or len(results) != 1:
        message = f"the graph has {len(inputs)} inputs and {len(results)} outputs"
        raise NoGraphError(message)
    return ModelGraph(module, inputs[0], computing, results[0])


def _module_path(node: fx.Node) -> set[str]:
    """The names of the submodules that a node was computed in."""
    return {path for path, _ in node.meta.get("nn_module_stack", {}).values()}
