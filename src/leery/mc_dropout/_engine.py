"""The engine: the deterministic part of a graph once, the rest once a pass with its masks.

A node is *stochastic* when an active dropout is among its ancestors. Everything else is computed
once a batch. In the stochastic part, a dropout that only feeds linear layers is not multiplied
out: a mask on a linear layer's input is a choice of its columns, so only those are multiplied.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from leery.mc_dropout._graph import (
    STEADY_ROWS,
    ModelGraph,
    NoGraphError,
    arguments,
    draws,
)
from leery.mc_dropout._masks import Masks, Site
from leery.mc_dropout._random import RANDOM

__all__ = ["Engine"]

_ATEN = torch.ops.aten
_RESHAPES = (_ATEN.flatten.using_ints, _ATEN.reshape.default)

Values = dict[fx.Node, Any]


@dataclass(frozen=True)
class _Columns:
    """A linear layer behind a dropout, computed on the kept columns only.

    Attributes:
        source: the node that the dropout acts on.
        linear: the node of the linear layer.
        site: the index of the dropout's site.
        rate: the probability of dropping a unit.
    """

    source: fx.Node
    linear: fx.Node
    site: int
    rate: float


@dataclass
class _Once:
    """What the passes share: values of the deterministic part, and matrices laid out for them."""

    values: Values
    matrices: dict[tuple[str, fx.Node], Tensor]

    def matrix(self, kind: str, node: fx.Node, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` gives, kept for the next pass when the node does not depend on one."""
        if node not in self.values:
            return make()
        key = (kind, node)
        if key not in self.matrices:
            self.matrices[key] = make()
        return self.matrices[key]


class Engine:
    """Runs a captured graph without dropout, and pass by pass with given draws.

    Args:
        graph: of the model.
        sites: where the model draws, in the order of the calls.
        layer: the feature layer that :meth:`without_dropout` reads, or None.

    Raises:
        NoGraphError: when the graph lacks a site or the layer.
    """

    def __init__(self, graph: ModelGraph, sites: Sequence[Site], layer: str | None = None) -> None:
        self._graph = graph
        active = graph.active()
        drawing = [node for node in active if draws(node)]
        if len(drawing) != len(sites):
            message = f"its graph shows {len(drawing)} of {len(sites)} random operations"
            raise NoGraphError(message)
        self._sites = dict(zip(drawing, sites, strict=True))
        self._place = {node: index for index, node in enumerate(drawing)}
        self._active = frozenset(active)
        self._tap = graph.layer_value(layer) if layer is not None else None
        if layer is not None and self._tap is None:
            message = f"layer {layer!r} leaves no trace in its graph"
            raise NoGraphError(message)
        stochastic = _descendants(graph, active)
        needed = _ancestors(graph.output, self._tap)
        self._prefix = [node for node in graph.nodes if node not in stochastic and node in needed]
        self._suffix = [node for node in graph.nodes if node in stochastic and node in needed]
        self._steps = self._plan()

    @property
    def knows_eval_mode(self) -> bool:
        """Whether it can tell what each random operation gives when nothing is dropped."""
        return all(RANDOM[node.target].mean for node in self._active)

    def prefix(self, batch: Tensor) -> _Once:
        """The deterministic part for a batch on the model's device."""
        values: Values = {self._graph.input: batch}
        for node in self._prefix:
            values[node] = self._graph.evaluate(node, values)
        return _Once(values, {})

    def without_dropout(self, once: _Once) -> tuple[Tensor, Tensor | None]:
        """Logits ``(N, classes)`` and features ``(N, D)``, as the model gives them in eval mode."""
        values = dict(once.values)
        for node in self._suffix:
            values[node] = self._quiet(node, values)
        features = None if self._tap is None else values[self._tap].flatten(1)
        return values[self._graph.output], features

    def one_pass(self, once: _Once, masks: Masks, index: int) -> Tensor:
        """Logits ``(N, classes)`` of pass ``index``."""
        values = dict(once.values)
        for step in self._steps:
            if isinstance(step, _Columns):
                values[step.linear] = self._columns(step, once, values, masks, index)
            elif step in self._place:
                values[step] = self._drawn(step, values, masks, index)
            else:
                values[step] = self._graph.evaluate(step, values)
        logits: Tensor = values[self._graph.output]
        return logits

    def _quiet(self, node: fx.Node, values: Values) -> Any:  # noqa: ANN401 - any node's value
        if node not in self._active:
            return self._graph.evaluate(node, values)
        mean = RANDOM[node.target].mean
        assert mean is not None, "knows_eval_mode was not asked"
        args, kwargs = arguments(node, values)
        return mean(*args, **kwargs)

    def _drawn(self, node: fx.Node, values: Values, masks: Masks, index: int) -> Any:  # noqa: ANN401
        count = len(values[self._graph.input])
        draw = self._sites[node].spread(masks.draws[self._place[node]][index], count)
        args, kwargs = arguments(node, values)
        return RANDOM[node.target].compute(draw, *args, **kwargs)

    def _columns(
        self, step: _Columns, once: _Once, values: Values, masks: Masks, index: int
    ) -> Tensor:
        """``dropout(x) @ W.T + b`` from the kept rows of ``x.T`` and ``W.T``.

        Rows of the transposes are contiguous, so that choosing them copies whole blocks; the
        result is the transpose of a contiguous matrix, which the next such step takes as it is.
        """
        weight, bias = (values[node] for node in _parameters(step.linear) if node is not None)
        kept = masks.draws[step.site][index].flatten().nonzero().squeeze(1)

        def transposed() -> Tensor:
            units = values[step.source].flatten(1).t()
            short = max(0, STEADY_ROWS - units.shape[1])
            return functional.pad(units, (0, short)) if short else units.contiguous()

        rows = once.matrix("input", step.source, transposed)
        weight_rows = once.matrix("weight", _weight(step.linear), weight.t().contiguous)
        product = weight_rows.index_select(0, kept).t() @ rows.index_select(0, kept)
        product = product.mul_(1 / (1 - step.rate)).add_(bias.unsqueeze(1))
        return product.t()[: len(values[step.source])]

    def _plan(self) -> list[_Columns | fx.Node]:
        """The stochastic nodes in order, each linear layer behind a dropout as one step."""
        columns: dict[fx.Node, _Columns] = {}
        absorbed: set[fx.Node] = set()
        for dropout, site in self._sites.items():
            if dropout.target is not _ATEN.dropout.default:
                continue
            chains = _chains_to_linear(dropout, math.prod(site.shape))
            if site.dimension != 0 or site.folds or chains is None:
                continue
            place, rate = self._place[dropout], float(dropout.args[1])  # type: ignore[arg-type]
            for linear, between in chains:
                columns[linear] = _Columns(_source(dropout), linear, place, rate)
                absorbed.update(between)
            absorbed.add(dropout)
        return [columns.get(node, node) for node in self._suffix if node not in absorbed]


def _source(dropout: fx.Node) -> fx.Node:
    """The node that a dropout acts on."""
    source = dropout.args[0]
    assert isinstance(source, fx.Node)
    return source


def _descendants(graph: ModelGraph, roots: Sequence[fx.Node]) -> set[fx.Node]:
    found = set(roots)
    for node in graph.nodes:
        if any(parent in found for parent in node.all_input_nodes):
            found.add(node)
    return found


def _ancestors(*roots: fx.Node | None) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [root for root in roots if root is not None]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _chains_to_linear(dropout: fx.Node, units: int) -> list[tuple[fx.Node, list[fx.Node]]] | None:
    """The linear layers that a dropout ends in through reshapes alone, with those reshapes.

    None when it feeds anything else, or where a linear layer does not see one flat vector of all
    the units of an image.
    """
    found: list[tuple[fx.Node, list[fx.Node]]] = []
    waiting: list[tuple[fx.Node, list[fx.Node]]] = [(dropout, [])]
    while waiting:
        node, between = waiting.pop()
        for user in node.users:
            if (
                user.target is _ATEN.linear.default
                and user.args[0] is node
                and _is_flat(node, units)
            ):
                if any(parameter is None for parameter in _parameters(user)):
                    return None
                found.append((user, between))
            elif user.target in _RESHAPES:
                waiting.append((user, [*between, user]))
            else:
                return None
    return found or None


def _is_flat(node: fx.Node, units: int) -> bool:
    """Whether a node is one vector an image: ``(N, units)``."""
    shape = node.meta["val"].shape
    return len(shape) == 2 and shape[1] == units  # noqa: PLR2004 - images and units


def _weight(linear: fx.Node) -> fx.Node:
    """The weight node of a linear layer."""
    weight, _ = _parameters(linear)
    assert weight is not None
    return weight


def _parameters(linear: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """The weight and bias nodes of a linear layer."""
    args = (*linear.args, None)
    return args[1], args[2]  # type: ignore[return-value]
