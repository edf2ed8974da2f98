"""Engine that runs the deterministic part of a graph once and the rest once per pass.

A node is *stochastic* if an active dropout is among its ancestors. Everything else is computed once
per batch. For few images, and always on a GPU, each operation of the stochastic part is launched
once for all passes. For many images on a CPU the passes are run one after the other, and a linear
layer after a dropout multiplies only the kept units.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx

from leery.errors import raise_machine_fault
from leery.mc_dropout._export import ModelGraph, NoGraphError, arguments, draws, last_reads
from leery.mc_dropout._masked_linear import (
    MaskedLinear,
    SharedParts,
    WeightCache,
    find_masked_linears,
    is_pointwise,
)
from leery.mc_dropout._masks import Masks, Site
from leery.mc_dropout._random_ops import RANDOM
from leery.tuning import FEW_IMAGES, SHARED_ELEMENTS

__all__ = ["Engine"]

Step = fx.Node | MaskedLinear

Values = dict[fx.Node, Any]


class Engine:
    """Runs a captured graph without dropout, and in passes with given draws.

    Args:
        graph: graph of the model.
        sites: random operations of the model, in the order of the calls.
        layers: layers that :meth:`without_dropout` and :meth:`one_pass_and_layers` read.

    Attributes:
        widest: elements per image of the widest tensor that is held for a batch or by a pass.

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
            message = f"its graph contains {len(drawing)} of {len(sites)} random operations"
            raise NoGraphError(message)
        self._sites = dict(zip(drawing, sites, strict=True))
        self._place = {node: index for index, node in enumerate(drawing)}
        self._active = frozenset(active)
        self._layers = {layer: _layer_value(graph, layer) for layer in layers}
        self._constants = {
            node: graph.constant(node) for node in graph.nodes if node.op == "get_attr"
        }
        self._shares_operations = False
        self._divide({graph.output, *self._layers.values()})

    def _divide(self, lasting: set[fx.Node]) -> None:
        """Separate the nodes that are computed once per batch from those of each pass.

        Args:
            lasting: the nodes whose values are results.
        """
        stochastic = _descendants(self._graph, self._active)
        needed = _ancestors(*lasting) - self._constants.keys()
        steady = [n for n in self._graph.nodes if n in needed and n not in stochastic]
        suffix = [n for n in self._graph.nodes if n in needed and n in stochastic]
        held = lasting.union(*(node.all_input_nodes for node in suffix))
        self._steady_steps = _with_last_reads(steady, held)
        self._whole_steps = _with_last_reads(suffix, lasting)
        passing = _ancestors(self._graph.output)
        drawn = [node for node in suffix if node in passing]
        self._drawn_steps = _with_last_reads(drawn, {self._graph.output})
        columns, absorbed = find_masked_linears(self._sites, drawn)
        kept = [columns.get(node, node) for node in drawn if node not in absorbed]
        self._masked_linears = list(columns.values())
        self._steps = _with_last_reads(kept, {self._graph.output})
        self._is_flat = all(isinstance(step, MaskedLinear) or _works_on_rows(step) for step in kept)
        self._widest_drawn = _widest(drawn)
        self.widest = _widest([*(node for node in steady if node in held), *map(_made, kept)])

    @property
    def knows_eval_mode(self) -> bool:
        """True if the eval-mode result of every random operation is known."""
        return all(RANDOM[node.target].mean for node in self._active)

    @property
    def weight_elements(self) -> int:
        """Total element count of the weights that are sub-selected in each pass."""
        return sum(layer.matrix_size for layer in self._masked_linears)

    def prefix(self, batch: Tensor) -> Values:
        """Results of the deterministic part, ``(N, ...)`` each, for a batch on the device."""
        values: Values = {
            node: value.detach() if isinstance(value, Tensor) else value
            for node, value in self._constants.items()
        }
        values[self._graph.input] = batch
        return self._walk(self._steady_steps, values, self._graph.evaluate)

    def without_dropout(self, once: Values) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``(N, classes)`` and layers ``(N, ...)``, as the model gives them in eval mode.

        Args:
            once: results of :meth:`prefix`.
        """
        values = self._walk(self._whole_steps, once, self._without_dropping)
        return values[self._graph.output], self._read(values, self._layers)

    def passes(self, once: Values, masks: Masks, cache: WeightCache | None = None) -> Tensor:
        """Logits ``(passes, N, classes)``.

        Args:
            once: results of :meth:`prefix`.
            masks: masks of all passes.
            cache: cache of the weights that these masks select, if any.
        """
        images = once[self._graph.input]
        few = images.device.type != "cpu" or len(images) <= FEW_IMAGES
        if few and self._shares_operations:
            return self.all_passes(once, masks)
        return self.each_pass(once, masks, cache)

    def each_pass(self, once: Values, masks: Masks, cache: WeightCache | None = None) -> Tensor:
        """Logits ``(passes, N, classes)``, one pass after the other, from kept columns only."""
        shared = {layer: layer.shared(once, masks, cache) for layer in self._masked_linears}
        each = [self._one_pass(once, masks, index, shared) for index in range(len(masks))]
        return torch.stack(each)

    def _one_pass(
        self, once: Values, masks: Masks, index: int, shared: dict[MaskedLinear, SharedParts]
    ) -> Tensor:
        def compute(step: Step, values: Values) -> Any:  # noqa: ANN401 - any node's value
            if isinstance(step, MaskedLinear):
                return step.compute(values, masks, index, shared[step])
            return self._drawn(step, values, lambda place: masks.draws[place][index])

        logits: Tensor = self._walk(self._steps, once, compute)[self._graph.output]
        return logits

    def one_pass_and_layers(
        self, once: Values, masks: Masks, index: int, layers: Sequence[str]
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

    def all_passes(self, once: Values, masks: Masks) -> Tensor:
        """Logits ``(passes, N, classes)``, each operation launched once for many passes."""
        images = once[self._graph.input]
        most = SHARED_ELEMENTS.get(images.device.type, SHARED_ELEMENTS["cuda"])
        together = max(1, most // (len(images) * self._widest_drawn))
        if self._is_flat and together >= len(masks):
            return self._flat_passes(once, masks)
        # Products with masks are several times as fast for contiguous tensors.
        ordered = {
            node: value.contiguous() if isinstance(value, Tensor) else value
            for node, value in once.items()
        }

        def whole_pass(*draws: Tensor) -> Tensor:
            values = self._walk(
                self._drawn_steps,
                ordered,
                lambda step, values: self._drawn(step, values, draws.__getitem__),
            )
            logits: Tensor = values[self._graph.output]
            return logits

        chunks = together if together < len(masks) else None
        found: Tensor = torch.vmap(whole_pass, chunk_size=chunks)(*masks.draws)
        return found

    def _flat_passes(self, once: Values, masks: Masks) -> Tensor:
        """:meth:`all_passes` for a pass of linear layers and elementwise functions only."""

        def compute(step: Step, values: Values) -> Any:  # noqa: ANN401 - any node's value
            if isinstance(step, MaskedLinear):
                return step.all_passes(values, masks)
            return self._graph.evaluate(step, values)

        logits: Tensor = self._walk(self._steps, once, compute)[self._graph.output]
        return logits

    def learn_to_share_operations(self, once: Values, masks: Masks) -> None:
        """Enable shared operations if they reproduce separate passes for these draws."""
        try:
            with warnings.catch_warnings():
                # Torch warns about operations for which vmap falls back to a loop over passes.
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", "There is a performance drop", UserWarning)
                together = self.all_passes(once, masks)
        except (RuntimeError, ValueError, UserWarning) as error:  # what vmap cannot batch
            raise_machine_fault(error)
            return
        alone = self.each_pass(once, masks)
        self._shares_operations = torch.allclose(together, alone, rtol=1e-3, atol=1e-4)

    def _walk(
        self,
        steps: Sequence[tuple[Any, Sequence[fx.Node]]],
        once: Values,
        compute: Callable[[Any, Values], Any],
    ) -> Values:
        """Compute the steps in order; return the results that are still needed at the end."""
        values = dict(once)
        for step, done in steps:
            values[_made(step)] = compute(step, values)
            # The next step reuses the freed memory, which is still in the processor's cache.
            for node in done:
                del values[node]
        return values

    def _without_dropping(self, node: fx.Node, values: Values) -> Any:  # noqa: ANN401 - any node's value
        if node not in self._active:
            return self._graph.evaluate(node, values)
        mean = RANDOM[node.target].mean
        assert mean is not None, "knows_eval_mode was not checked"
        args, kwargs = arguments(node, values)
        return mean(*args, **kwargs)

    def _drawn(self, node: fx.Node, values: Values, draw: Callable[[int], Tensor]) -> Any:  # noqa: ANN401
        """The result of a node in a pass with the given draws."""
        if node not in self._place:
            return self._graph.evaluate(node, values)
        count = len(values[self._graph.input])
        spread = self._sites[node].spread(draw(self._place[node]), count)
        args, kwargs = arguments(node, values)
        return RANDOM[node.target].compute(spread, *args, **kwargs)


def _layer_value(graph: ModelGraph, layer: str) -> fx.Node:
    found = graph.layer_value(layer)
    if found is None:
        message = f"layer {layer!r} is not in its graph"
        raise NoGraphError(message)
    return found


def _works_on_rows(node: fx.Node) -> bool:
    """True if a node's operation accepts ``(passes, N, units)`` as well as ``(N, units)``."""
    return is_pointwise(node) or node.target is torch.ops.aten.linear.default


def _made(step: Step) -> fx.Node:
    return step.linear if isinstance(step, MaskedLinear) else step


def _with_last_reads(
    steps: Sequence[Step], lasting: Set[fx.Node]
) -> list[tuple[Any, list[fx.Node]]]:
    """Each step with the results that can be freed after it."""
    reads = [
        (_made(step), step.reads if isinstance(step, MaskedLinear) else step.all_input_nodes)
        for step in steps
    ]
    done = last_reads(reads, {made for made, _ in reads} - lasting)
    return list(zip(steps, done, strict=True))


def _widest(nodes: Iterable[fx.Node]) -> int:
    """Largest number of elements per image of any node's result; at least 1."""
    return max(map(_elements_per_image, nodes), default=1)


def _elements_per_image(node: fx.Node) -> int:
    """Number of elements per image of a node's result; 1 if it has no batch dimension."""
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, Tensor) else ()
    if all(isinstance(size, int) for size in sizes):
        return 1
    # A symbolic size knows its integer for the two images of the capture; a size that depends on
    # their content is unknown.
    known = [size if isinstance(size, int) else size.node.hint or 1 for size in sizes]
    return math.ceil(math.prod(known) / 2)


def _descendants(graph: ModelGraph, roots: Iterable[fx.Node]) -> set[fx.Node]:
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
