"""A model's graph with its dropout nodes kept, in a form that can be split and run piece by piece.

``torch.export`` writes the forward pass down as ATen calls. Here in-place calls are replaced by
their functional twins, so that any value can be computed once and used in every pass.
"""

import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from leery._guest import guest
from leery.errors import InputError, UnsupportedModelError

__all__ = ["STEADY_ROWS", "ModelGraph", "capture", "dropout_modules"]

STEADY_ROWS = 16
"""The number of rows from which on matrix products treat every row alike."""

_ATEN = torch.ops.aten
_DROPOUTS = (_ATEN.dropout.default, _ATEN.feature_dropout.default)
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


def dropout_modules(model: nn.Module) -> list[nn.Module]:
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
        _try(model, example)
        with _dropout_on(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = ({0: torch.export.Dim.DYNAMIC},)
            try:
                program = torch.export.export(model, (example,), dynamic_shapes=batch)
            except Exception as error:
                message = (
                    f"expected a model whose graph torch.export can capture, got {_brief(error)}; "
                    "take data-dependent control flow out of forward and let the batch size vary"
                )
                raise UnsupportedModelError(message) from error
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


def _try(model: nn.Module, example: Tensor) -> None:
    try:
        logits = model(example)
    except RuntimeError as error:
        message = (
            f"expected images that the model accepts, got shape {tuple(example.shape)} and "
            f"{example.dtype}, which it refuses ({_brief(error)}); check shape and type"
        )
        raise InputError(message) from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(example):  # noqa: PLR2004
        message = (
            f"expected a model that returns logits ({len(example)}, classes), got {shape}; "
            "wrap it in a module that does"
        )
        raise UnsupportedModelError(message)


@contextmanager
def _dropout_on(model: nn.Module) -> Iterator[None]:
    """Inside :func:`guest`: the dropout layers alone in train mode; guest puts them back."""
    for module in dropout_modules(model):
        module.training = True
    yield


def _make_functional(module: fx.GraphModule) -> None:
    """Replace in-place calls by functional ones; later readers of the old value get the new.

    Views become reshapes: the same values, and no demand on how they lie in memory.
    """
    order = {node: place for place, node in enumerate(module.graph.nodes)}
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
        node.args[0].replace_all_uses_with(
            node, delete_user_cb=lambda user, place=place: order[user] > place
        )


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


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
