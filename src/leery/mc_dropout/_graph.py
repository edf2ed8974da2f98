"""A model's graph with its dropout nodes kept, in a form that can be split and run piece by piece.

``torch.export`` writes the forward pass down as ATen calls. Here in-place calls are replaced by
their functional twins, so that any value can be computed once and used in every pass.
"""

import operator
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from leery._guest import guest, run_model
from leery.errors import UnsupportedModelError, brief

__all__ = ["STEADY_ROWS", "ModelGraph", "capture", "dropout_modules"]

STEADY_ROWS = 16
"""The number of rows from which on matrix products treat every row alike."""

_ATEN = torch.ops.aten
_DROPOUTS = (_ATEN.dropout.default, _ATEN.feature_dropout.default)
_ANY_BATCH = 2**31
_UNSPLITTABLE = (_ATEN.alpha_dropout.default, _ATEN.feature_alpha_dropout.default)


@dataclass(frozen=True)
class ModelGraph:
    """The nodes of a forward pass in execution order.

    Attributes:
        module: holds the parameters, which are the model's own: later changes of their values
            are seen.
        input: the placeholder of the batch.
        nodes: every computing node, in order.
        output: the node of the logits.
    """

    module: fx.GraphModule
    input: fx.Node
    nodes: tuple[fx.Node, ...]
    output: fx.Node

    def dropouts(self) -> list[fx.Node]:
        """The dropout nodes that drop something."""
        return [node for node in self.nodes if is_active_dropout(node)]

    def layer_output(self, layer: str) -> fx.Node | None:
        """The last node computed inside the submodule of that name, if there is one."""
        inside = [node for node in self.nodes if layer in _module_path(node)]
        return inside[-1] if inside else None

    def mask_shape(self, dropout: fx.Node) -> tuple[int, ...]:
        """The shape of a pass's mask: of one image's units, or of a parameter as a whole.

        Raises:
            UnsupportedModelError: when the images do not lie along the first dimension.
        """
        batch, sizes = self.input.meta["val"].shape[0], tuple(dropout.meta["val"].shape)
        if drops_channels(dropout):
            sizes = (*sizes[:2], *(1,) * (len(sizes) - 2))
        if isinstance(sizes[0], torch.SymInt) and sizes[0].node.expr == batch.node.expr:
            sizes = sizes[1:]
        if any(isinstance(size, torch.SymInt) for size in sizes):
            message = (
                "expected dropout on activations whose first dimension counts the images, got "
                f"shape {tuple(dropout.meta['val'].shape)} at {dropout.name}; "
                "apply dropout before the images are moved or mixed along the dimensions"
            )
            raise UnsupportedModelError(message)
        return sizes

    def constant(self, node: fx.Node) -> Any:  # noqa: ANN401 - a parameter, buffer or constant
        """The value of a node that reads an attribute of the model."""
        return operator.attrgetter(str(node.target))(self.module)


def is_active_dropout(node: fx.Node) -> bool:
    """Whether a node drops units with a probability above zero."""
    return node.target in _DROPOUTS and dropout_rate(node) > 0 and bool(node.args[2])


def dropout_rate(node: fx.Node) -> float:
    """The probability with which a dropout node drops a unit."""
    return float(node.args[1])  # type: ignore[arg-type]


def drops_channels(node: fx.Node) -> bool:
    """Whether a dropout node drops whole channels (``nn.Dropout2d`` and its kin)."""
    return node.target is _ATEN.feature_dropout.default


def dropout_modules(model: nn.Module) -> list[nn.modules.dropout._DropoutNd]:
    """The dropout layers of a model that would drop something in train mode."""
    kind = nn.modules.dropout._DropoutNd  # noqa: SLF001 - torch's own base of them all
    return [module for module in model.modules() if isinstance(module, kind) and module.p > 0]


def capture(model: nn.Module, example: Tensor) -> ModelGraph:
    """Write down the model's forward pass with dropout on and everything else in eval mode.

    Args:
        model: left as it was.
        example: at least two inputs; the graph holds for any number of them.

    Raises:
        UnsupportedModelError: when the graph cannot be had, does not take any batch size, or
            holds a kind of dropout that cannot be split.
        InputError: when the model does not accept the example.
    """
    with guest(model), torch.no_grad():
        run_model(model, example)
        with _dropout_on(model), _hooks_off(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = ({0: torch.export.Dim.DYNAMIC},)
            try:
                program = torch.export.export(model, (example,), dynamic_shapes=batch)
            except Exception as error:
                message = (
                    f"expected a model whose graph torch.export can capture, got {brief(error)}; "
                    "take data-dependent control flow out of forward and let the batch size vary"
                )
                raise UnsupportedModelError(message) from error
    if any(limits.upper < _ANY_BATCH for limits in program.range_constraints.values()):
        message = (
            "expected a model that treats a batch of any size alike, got one whose forward asks "
            "for the batch size; take that out of forward"
        )
        raise UnsupportedModelError(message)
    module = program.module(check_guards=False)
    _make_functional(module)
    return _checked(module)


def evaluate(graph: ModelGraph, node: fx.Node, values: dict[fx.Node, Any]) -> Any:  # noqa: ANN401
    """The value of one node, given those it depends on."""
    if node.op == "get_attr":
        return graph.constant(node)
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    if node.target is _ATEN.linear.default:
        return steady_linear(*args)  # type: ignore[arg-type]  # now the values of the nodes
    return node.target(*args, **kwargs)  # type: ignore[operator]


def steady_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear`` whose result for a row does not depend on how many rows there are.

    For a handful of rows BLAS takes other kernels, which add in another order; with
    :data:`STEADY_ROWS` or more, a row's result was found bit-equal in every batch.
    """
    short = STEADY_ROWS - len(rows)
    if short <= 0 or rows.ndim != 2:  # noqa: PLR2004 - one vector an image
        return nn.functional.linear(rows, weight, bias)
    filled = nn.functional.pad(rows, (0, 0, 0, short))
    return nn.functional.linear(filled, weight, bias)[: len(rows)]


@contextmanager
def _dropout_on(model: nn.Module) -> Iterator[None]:
    """Inside :func:`guest`: the dropout layers alone in train mode; guest puts them back."""
    for module in dropout_modules(model):
        module.training = True
    yield


@contextmanager
def _hooks_off(model: nn.Module) -> Iterator[None]:
    """No forward hooks while the graph is captured: they would be shown tensors without values.

    Pre-hooks stay; weight normalisation and pruning compute weights in them.
    """
    hooks = [(module, module._forward_hooks) for module in model.modules()]  # noqa: SLF001
    try:
        for module, _ in hooks:
            module._forward_hooks = OrderedDict()  # noqa: SLF001
        yield
    finally:
        for module, own in hooks:
            module._forward_hooks = own  # noqa: SLF001


def _make_functional(module: fx.GraphModule) -> None:
    """Replace in-place calls by functional ones; later readers of the old value get the new.

    Views become reshapes: the same values, and no demand on how they lie in memory.
    """
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    memory = _shared_memory(module)
    for node in module.graph.nodes:
        overload = node.target
        if overload is _ATEN.view.default:
            node.target = _ATEN.reshape.default
        if not isinstance(overload, torch._ops.OpOverload) or not overload._schema.is_mutable:  # noqa: SLF001
            continue
        name = overload._schema.name.removeprefix("aten::")  # noqa: SLF001
        packet = getattr(_ATEN, name.removesuffix("_"), None)
        functional = getattr(packet, overload._overloadname, None)  # noqa: SLF001
        if functional is None or not name.endswith("_"):
            message = (
                f"expected operations that have a form without side effects, got {overload}; "
                "replace it in the model's forward"
            )
            raise UnsupportedModelError(message)
        node.target = functional
        place = order[node]
        earlier = {other for other in memory[node] - {node.args[0]} if order[other] < place}
        if any(order[user] > place for other in earlier for user in other.users):
            message = (
                f"expected in-place changes of tensors that nothing else reads, got {overload} on "
                "a view of one that is read later; take inplace=True out there"
            )
            raise UnsupportedModelError(message)
        node.args[0].replace_all_uses_with(
            node, delete_user_cb=lambda user, place=place: order[user] > place
        )


def _shared_memory(module: fx.GraphModule) -> dict[fx.Node, set[fx.Node]]:
    """For each node those that may lie in the same memory: its views, bases and in-place twins."""
    groups: dict[fx.Node, set[fx.Node]] = {}
    for node in module.graph.nodes:
        groups[node] = {node}
        base = node.args[0] if node.args else None
        if isinstance(base, fx.Node) and _may_alias(node):
            groups[base].add(node)
            groups[node] = groups[base]
    return groups


def _may_alias(node: fx.Node) -> bool:
    """Whether a node's result may lie in the memory of its first argument."""
    if isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
        return any(found.alias_info is not None for found in node.target._schema.returns)  # noqa: SLF001
    return node.target is operator.getitem


def _checked(module: fx.GraphModule) -> ModelGraph:
    nodes: Sequence[fx.Node] = tuple(module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    computing = tuple(node for node in nodes if node.op in ("get_attr", "call_function"))
    (output,) = (node for node in nodes if node.op == "output")
    results = [result for result in output.all_input_nodes if result.op != "placeholder"]
    unsplittable = [str(node.target) for node in computing if node.target in _UNSPLITTABLE]
    if len(inputs) != 1 or len(results) != 1:
        message = (
            f"expected a model of one input and one output, got {len(inputs)} and "
            f"{len(results)}; wrap it in a module that takes images and returns logits"
        )
        raise UnsupportedModelError(message)
    if unsplittable:
        message = (
            f"expected nn.Dropout or nn.Dropout1d/2d/3d, got {', '.join(sorted(unsplittable))}; "
            "replace the alpha dropout layers"
        )
        raise UnsupportedModelError(message)
    return ModelGraph(module, inputs[0], computing, results[0])


def _module_path(node: fx.Node) -> set[str]:
    """The names of the submodules that a node was computed in."""
    return {path for path, _ in node.meta.get("nn_module_stack", {}).values()}
