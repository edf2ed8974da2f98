"""The engine: the deterministic part of a graph once, the rest once a pass with its masks.

A node is *stochastic* when an active dropout is among its ancestors. Everything else is computed
once a batch. In the stochastic part, a dropout that only feeds linear layers is not multiplied
out: a mask on a linear layer's input is a choice of its columns, so only those are multiplied.

That is for a processor. A GPU is given many passes in one launch of each operation.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx

from leery.mc_dropout._columns import Columns, find_columns
from leery.mc_dropout._graph import ModelGraph, NoGraphError, arguments, draws, last_reads
from leery.mc_dropout._masks import Masks, Site
from leery.mc_dropout._once import Memory, Once, Values
from leery.mc_dropout._prefix import Prefix
from leery.mc_dropout._random import RANDOM

__all__ = ["Engine"]

MOST_AT_ONCE = 2**28
"""Numbers in the widest value of the passes that share a launch; float32 makes that 1 GiB."""

Step = fx.Node | Columns


class Engine:
    """Runs a captured graph without dropout, and pass by pass with given draws.

    Args:
        graph: of the model.
        sites: where the model draws, in the order of the calls.
        layers: those that :meth:`without_dropout` and :meth:`one_pass_and_layers` read.

    Raises:
        NoGraphError: when the graph lacks a site or a layer.
    """

    def __init__(
        self, graph: ModelGraph, sites: Sequence[Site], layers: Sequence[str] = ()
    ) -> None:
        self._graph = graph
        active = graph.active()
        drawing = [node for node in active if draws(node)]
        if len(drawing) != len(sites):
            message = f"its graph shows {len(drawing)} of {len(sites)} random operations"
            raise NoGraphError(message)
        self._sites = dict(zip(drawing, sites, strict=True))
        self._place = {node: index for index, node in enumerate(drawing)}
        self._active = frozenset(active)
        self._layers = {layer: _layer_value(graph, layer) for layer in layers}
        read = set(self._layers.values())
        stochastic = _descendants(graph, active)
        needed = _ancestors(graph.output, *read)
        steady = [node for node in graph.nodes if node not in stochastic and node in needed]
        self._prefix = Prefix(graph, steady, [graph.output, *read])
        self._suffix = [node for node in graph.nodes if node in stochastic and node in needed]
        columns, absorbed = find_columns(self._sites, self._suffix)
        kept = [columns.get(node, node) for node in self._suffix if node not in absorbed]
        self._steps = _with_last_reads(kept, {graph.output})
        self._whole_steps = _with_last_reads(self._suffix, {graph.output, *read})
        self._shares_launches = False

    @property
    def knows_eval_mode(self) -> bool:
        """Whether it can tell what each random operation gives when nothing is dropped."""
        return all(RANDOM[node.target].mean for node in self._active)

    @property
    def most_chosen(self) -> int:
        """The numbers of the matrices of which a pass chooses rows or columns."""
        return sum(step.matrix_size for step, _ in self._steps if isinstance(step, Columns))

    @property
    def widest_once(self) -> int:
        """The numbers of an image in the widest value that a batch has once for all passes."""
        return _widest(self._prefix.together)

    @property
    def widest_of_a_pass(self) -> int:
        """The numbers of an image in the widest value that each pass computes."""
        return _widest([_made(step) for step, _ in self._steps])

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

    def without_dropout(self, once: Once) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(N, classes)`` and layers ``(N, ...)``, as the model gives them in eval mode."""
        values = self._walk(self._whole_steps, once, self._quiet)
        return values[self._graph.output], self._read(values, self._layers)

    def passes(self, once: Once, masks: Masks) -> Sequence[Tensor]:
        """Logits ``(N, classes)`` of each pass."""
        if self._shares_launches:
            return self.all_passes(once, masks).unbind()
        return [self.one_pass(once, masks, index) for index in range(len(masks.draws[0]))]

    def one_pass(self, once: Once, masks: Masks, index: int) -> Tensor:
        """Logits ``(N, classes)`` of pass ``index``, from kept columns only."""

        def compute(step: Step, values: Values) -> Any:  # noqa: ANN401 - any node's value
            if isinstance(step, Columns):
                return step.compute(once, values, masks, index)
            return self._drawn(step, values, lambda place: masks.draws[place][index])

        logits: Tensor = self._walk(self._steps, once, compute)[self._graph.output]
        return logits

    def one_pass_and_layers(
        self, once: Once, masks: Masks, index: int, layers: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(N, classes)`` and layers ``(N, ...)`` of pass ``index``, all units computed."""
        values = self._walk(
            self._whole_steps,
            once,
            lambda node, found: self._drawn(node, found, lambda place: masks.draws[place][index]),
        )
        return values[self._graph.output], self._read(values, layers)

    def _read(self, values: Values, layers: Iterable[str]) -> dict[str, Tensor]:
        return {layer: values[self._layers[layer]] for layer in layers}

    def all_passes(self, once: Once, masks: Masks) -> Tensor:
        """Logits ``(passes, N, classes)``, each operation launched once for many passes."""
        count = len(once.values[self._graph.input])
        widest = _widest(self._suffix)

        def whole_pass(*draws: Tensor) -> Tensor:
            values = self._walk(
                self._whole_steps,
                once,
                lambda step, values: self._drawn(step, values, draws.__getitem__),
            )
            logits: Tensor = values[self._graph.output]
            return logits

        together = max(1, MOST_AT_ONCE // (count * widest))
        found: Tensor = torch.vmap(whole_pass, chunk_size=together)(*masks.draws)
        return found

    def learn_to_share_launches(self, once: Once, masks: Masks) -> None:
        """Let passes share launches if that gives the same for these draws."""
        try:
            with warnings.catch_warnings():
                # An operation that is repeated for each pass after all is warned of.
                warnings.simplefilter("error")
                together = self.all_passes(once, masks)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, UserWarning):  # what torch says of what it cannot share
            return
        alone = torch.stack([self.one_pass(once, masks, index) for index in range(len(together))])
        self._shares_launches = torch.allclose(together, alone, rtol=1e-3, atol=1e-4)

    def _walk(
        self,
        steps: Sequence[tuple[Step, Sequence[fx.Node]]],
        once: Once,
        compute: Callable[[Any, Values], Any],
    ) -> Values:
        """What is asked for in the end, after computing each step from what was before."""
        values = dict(once.values)
        for step, done in steps:
            values[_made(step)] = compute(step, values)
            # What comes next takes over its memory, which is near the processor.
            for node in done:
                del values[node]
        return values

    def _quiet(self, node: fx.Node, values: Values) -> Any:  # noqa: ANN401 - any node's value
        if node not in self._active:
            return self._graph.evaluate(node, values)
        mean = RANDOM[node.target].mean
        assert mean is not None, "knows_eval_mode was not asked"
        args, kwargs = arguments(node, values)
        return mean(*args, **kwargs)

    def _drawn(self, node: fx.Node, values: Values, draw: Callable[[int], Tensor]) -> Any:  # noqa: ANN401
        """The value of a node in a pass that draws this at each place."""
        if node not in self._place:
            return self._graph.evaluate(node, values)
        count = len(values[self._graph.input])
        spread = self._sites[node].spread(draw(self._place[node]), count)
        args, kwargs = arguments(node, values)
        return RANDOM[node.target].compute(spread, *args, **kwargs)


def _layer_value(graph: ModelGraph, layer: str) -> fx.Node:
    found = graph.layer_value(layer)
    if found is None:
        message = f"layer {layer!r} leaves no trace in its graph"
        raise NoGraphError(message)
    return found


def _made(step: Step) -> fx.Node:
    return step.made if isinstance(step, Columns) else step


def _with_last_reads(
    steps: Sequence[Step], lasting: Set[fx.Node | None]
) -> list[tuple[Step, list[fx.Node]]]:
    """Each step with the values that nothing reads after it and nobody asks for."""
    reads = [
        (_made(step), step.reads if isinstance(step, Columns) else step.all_input_nodes)
        for step in steps
    ]
    done = last_reads(reads, {made for made, _ in reads} - lasting)
    return list(zip(steps, done, strict=True))


def _widest(nodes: Sequence[fx.Node]) -> int:
    """The most numbers that a value has for each image; at least 1."""
    return max((_numbers_of_an_image(node) for node in nodes), default=1)


def _numbers_of_an_image(node: fx.Node) -> int:
    """How many numbers a value has for each image; 1 where it does not count the images."""
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, Tensor) else ()
    if all(isinstance(size, int) for size in sizes):
        return 1
    # A size that depends on the number of images knows what it was for the two of the capture; one
    # that depends on what is in them is not known.
    known = [size if isinstance(size, int) else size.node.hint or 1 for size in sizes]
    return math.ceil(math.prod(known) / 2)


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
