"""The engine: the deterministic part of a graph once, the rest once a pass with its masks.

A node is *stochastic* when an active dropout is among its ancestors. Everything else is computed
once a batch. In the stochastic part, a dropout that only feeds linear layers is not multiplied
out: a mask on a linear layer's input is a choice of its columns, so only those are multiplied.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from leery.mc_dropout._columns import Columns, find_columns
from leery.mc_dropout._graph import ModelGraph, NoGraphError, arguments, draws, last_reads
from leery.mc_dropout._masks import Masks, Site
from leery.mc_dropout._once import Memory, Once, Values
from leery.mc_dropout._prefix import Prefix
from leery.mc_dropout._random import RANDOM

__all__ = ["Engine"]


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
        steady = [node for node in graph.nodes if node not in stochastic and node in needed]
        self._prefix = Prefix(graph, steady, [graph.output, *([self._tap] if self._tap else [])])
        self._suffix = [node for node in graph.nodes if node in stochastic and node in needed]
        columns, absorbed = find_columns(self._sites, self._suffix)
        steps = [columns.get(node, node) for node in self._suffix if node not in absorbed]
        reads = [
            (step.linear, step.reads) if isinstance(step, Columns) else (step, step.all_input_nodes)
            for step in steps
        ]
        done = last_reads(reads, {made for made, _ in reads} - {graph.output})
        self._steps = list(zip(steps, done, strict=True))

    @property
    def knows_eval_mode(self) -> bool:
        """Whether it can tell what each random operation gives when nothing is dropped."""
        return all(RANDOM[node.target].mean for node in self._active)

    def learn_parts(self, pair: Tensor) -> None:
        """Find out from two images whether the deterministic part can be had image by image."""
        self._prefix.learn_parts(pair)

    def prefix(self, batch: Tensor, memory: Memory | None = None) -> Once:
        """The deterministic part for a batch on the model's device.

        Args:
            batch: ``(N, ...)``.
            memory: shared with other batches of the same call.
        """
        return self._prefix(batch, memory or Memory())

    def without_dropout(self, once: Once) -> tuple[Tensor, Tensor | None]:
        """Logits ``(N, classes)`` and features ``(N, D)``, as the model gives them in eval mode."""
        values = dict(once.values)
        for node in self._suffix:
            values[node] = self._quiet(node, values)
        features = None if self._tap is None else values[self._tap].flatten(1)
        return values[self._graph.output], features

    def one_pass(self, once: Once, masks: Masks, index: int) -> Tensor:
        """Logits ``(N, classes)`` of pass ``index``."""
        values = dict(once.values)
        for step, done in self._steps:
            if isinstance(step, Columns):
                values[step.linear] = step.compute(once, values, masks, index)
            elif step in self._place:
                values[step] = self._drawn(step, values, masks, index)
            else:
                values[step] = self._graph.evaluate(step, values)
            # What comes next takes over its memory, which is near the processor.
            for node in done:
                del values[node]
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
