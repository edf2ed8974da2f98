"""The deterministic part of a graph, computed once a batch, some images at a time."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, fx

from leery.mc_dropout._graph import ModelGraph, last_reads
from leery.mc_dropout._once import Memory, Once, Values

__all__ = ["Prefix"]

AT_ONCE = 32
"""Images whose activations are held at a time: they stay near the processor, and the system is not
asked for much memory over and over."""


class Prefix:
    """Computes the nodes that no draw has an influence on.

    Args:
        graph: of the model.
        nodes: those, in order.
        lasting: nodes whose values are asked for even if nothing reads them.
    """

    def __init__(
        self, graph: ModelGraph, nodes: Sequence[fx.Node], lasting: Collection[fx.Node]
    ) -> None:
        self._graph = graph
        self._constants = [node for node in nodes if node.op == "get_attr"]
        computed = [node for node in nodes if node.op != "get_attr"]
        inside = {*computed, graph.input}
        kept = {node for node in inside if node in lasting or not node.users.keys() <= inside}
        self._divisible = False
        done = last_reads([(node, node.all_input_nodes) for node in computed], inside - kept)
        self._steps = list(zip(computed, done, strict=True))
        self._images = {node: _images_dimension(node, graph.input) for node in kept - {graph.input}}

    @property
    def together(self) -> list[fx.Node]:
        """The nodes whose values are held for all images of a batch at once."""
        return [*self._images] if self._divisible else [node for node, _ in self._steps]

    def __call__(self, batch: Tensor, memory: Memory) -> Once:
        """The values that passes ask for, for a batch on the model's device."""
        # On a GPU many images at once are what is fast.
        divisible = self._divisible and batch.device.type == "cpu"
        return Once(self._values(batch, -(-len(batch) // AT_ONCE) if divisible else 1), memory)

    def learn_parts(self, pair: Tensor) -> None:
        """Find out whether values of two images are those of the one and of the other.

        They are not where the graph counts the images, as ``torch.arange(len(x))`` does.
        """
        if None not in self._images.values():
            whole, parts = self._values(pair, 1), self._values(pair, 2)
            self._divisible = all(
                torch.allclose(parts[node], whole[node], rtol=1e-3, atol=1e-4)
                for node in self._images
            )

    def _values(self, batch: Tensor, parts: int) -> Values:
        """What is read later, computed in so many parts."""
        values: Values = {node: self._graph.constant(node) for node in self._constants}
        found = [self._run(part, values) for part in batch.tensor_split(parts)]
        for node, dimension in self._images.items():
            pieces = [part[node] for part in found]
            if parts == 1:
                values[node] = pieces[0]
            else:
                assert dimension is not None, "only what counts images is divided"
                values[node] = torch.cat(pieces, dimension)
        values[self._graph.input] = batch
        return values

    def _run(self, batch: Tensor, constants: Values) -> Values:
        """All values for some images that are read later."""
        values: Values = {**constants, self._graph.input: batch}
        for node, done in self._steps:
            values[node] = self._graph.evaluate(node, values)
            for passed in done:
                del values[passed]
        return values


def _images_dimension(node: fx.Node, images: fx.Node) -> int | None:
    """The dimension of a value that counts the images; None unless exactly one does."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    depending = [place for place, size in enumerate(value.shape) if not isinstance(size, int)]
    count = images.meta["val"].shape[0]
    # As text: whether sizes that depend on the batch are equal is not to be asked of torch here.
    alike = [place for place in depending if str(value.shape[place]) == str(count)]
    return alike[0] if len(depending) == len(alike) == 1 else None
