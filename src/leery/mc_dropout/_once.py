"""What passes share: values computed once a batch, matrices chosen once, memory."""

import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from leery.mc_dropout._masks import Masks

__all__ = ["Choose", "Kept", "Memory", "Once", "Values"]

MOST_KEPT = 2**25
"""Numbers of matrices that are kept for the next batch or call; float32 makes that 128 MiB."""

Values = dict[fx.Node, Any]

_Tensors = tuple[Tensor, ...]

Choose = Callable[[Hashable, Tensor, int, Tensor], Tensor]
"""Chosen rows or columns of a matrix: what for, of what, in which dimension, which."""


@dataclass
class _OfLayer:
    """What is kept for a layer.

    Attributes:
        sources: its parameters as they were, copied; what was chosen of others is not kept.
        chosen: of them, for each pass.
        booked: the passes for which there is room.
        numbers: in all this, once everything booked is there.
    """

    sources: tuple[Tensor, ...]
    chosen: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    booked: set[int] = field(default_factory=set)
    numbers: int = 0

    def is_of(self, sources: Sequence[Tensor]) -> bool:
        """Whether the parameters are what they were."""
        # To torch.equal a number is the same in float16 and in float32.
        return all(
            own.dtype == other.dtype and torch.equal(own, other)
            for own, other in zip(self.sources, sources, strict=True)
        )


class Kept:
    """Matrices chosen for passes with the same masks, kept from one batch and call to the next."""

    def __init__(self) -> None:
        self._layers: dict[fx.Node, _OfLayer] = {}
        self._lock = threading.Lock()

    @property
    def numbers(self) -> int:
        """How many are kept, or have room booked for them."""
        return sum(layer.numbers for layer in self._layers.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._layers = {}

    def refresh(self, node: fx.Node, sources: Sequence[Tensor]) -> None:
        """Forget what was chosen for a layer if its parameters are no longer what they were."""
        with self._lock:
            if node in self._layers and self._layers[node].is_of(sources):
                return
            self._layers.pop(node, None)
            size = sum(source.numel() for source in sources)
            if self.numbers + size <= MOST_KEPT:
                copies = tuple(source.detach().clone() for source in sources)
                self._layers[node] = _OfLayer(copies, numbers=size)

    def find(
        self, node: fx.Node, index: int, numbers: Callable[[], int], make: Callable[[], _Tensors]
    ) -> _Tensors | None:
        """What ``make`` gives for a layer in a pass, or gave before; None where there is no room.

        Args:
            node: the layer.
            index: of the pass.
            numbers: how many will be in it.
            make: chooses into memory that nothing else is written into.
        """
        layer = self._layers.get(node)
        if layer is None:
            return None
        found = layer.chosen.get(index)
        if found is not None:
            return found
        size = numbers()
        with self._lock:
            # Another thread may be making the same.
            if index not in layer.booked and self.numbers + size <= MOST_KEPT:
                layer.booked.add(index)
                layer.numbers += size
        return layer.chosen.setdefault(index, make()) if index in layer.booked else None


class Memory:
    """What the batches of a call share, in whichever threads they are worked on.

    Args:
        kept: for them and for later calls; None where nothing will be asked for again.
        reused: whether what is chosen of the images may be written over by the next choice;
            derivatives need it to last.
    """

    def __init__(self, kept: Kept | None = None, *, reused: bool = True) -> None:
        self._kept = kept
        self.reused = reused
        self._compared: set[fx.Node] = set()
        self._own = threading.local()

    def keep(
        self,
        node: fx.Node,
        index: int,
        sources: Sequence[Tensor],
        numbers: Callable[[], int],
        make: Callable[[Choose], _Tensors],
    ) -> _Tensors:
        """What ``make`` gives for a layer in a pass, or gave before: kept while there is room.

        Args:
            node: the layer.
            index: of the pass.
            sources: the layer's parameters, of which it is made; the same in the whole call.
            numbers: how many will be in it.
            make: is told how to choose: into memory of its own for what is kept.
        """
        if self._kept is None:
            return make(self.choose)
        if node not in self._compared:
            self._kept.refresh(node, sources)
            self._compared.add(node)
        found = self._kept.find(node, index, numbers, lambda: make(_chosen))
        return make(self.choose) if found is None else found

    def choose(self, kind: Hashable, matrix: Tensor, dim: int, index: Tensor) -> Tensor:
        """The chosen rows or columns of a matrix, until this thread's next choice of this kind.

        It is written over the last one: to ask the system for so much fresh memory takes longer
        than to fill it.
        """
        if not self.reused:
            return _chosen(kind, matrix, dim, index)
        buffers: dict[Hashable, Tensor] = vars(self._own).setdefault("buffers", {})
        shape = list(matrix.shape)
        shape[dim] = index.shape[0]
        numbers = math.prod(shape)
        buffer = buffers.get(kind)
        if buffer is None or buffer.numel() < numbers:
            # The next choice may be a little larger.
            numbers = min(matrix.numel(), numbers + numbers // 8)
            buffer = buffers[kind] = matrix.new_empty(numbers)
        # One call, not a slice and a view: threads wait for each other at every call of torch.
        chosen = buffer.as_strided(shape, (shape[1], 1))
        return torch.index_select(matrix, dim, index, out=chosen)


def _chosen(_kind: Hashable, matrix: Tensor, dim: int, index: Tensor) -> Tensor:
    """:meth:`Memory.choose` into memory of its own."""
    return matrix.index_select(dim, index)


@dataclass
class Once:
    """What the passes over a batch share.

    Attributes:
        values: of the nodes of the deterministic part, as far as they are read later.
        memory: of the call.
    """

    values: Values
    memory: Memory
    _matrices: dict[fx.Node, Tensor] = field(default_factory=dict)
    _rows: dict[tuple[fx.Node, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def matrix(self, node: fx.Node, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` makes of the value of a node of the deterministic part, made once."""
        if node not in self._matrices:
            self._matrices[node] = make()
        return self._matrices[node]

    def rows(
        self, node: fx.Node, site: int, matrix: Tensor, masks: Masks, index: int
    ) -> list[Tensor]:
        """The rows of a matrix that a dropout keeps in a pass, chosen once for some passes.

        Args:
            node: whose value the matrix holds.
            site: the place of the dropout.
            matrix: ``(units, N)``, the same in each pass.
            masks: of all passes.
            index: of the pass.
        """
        chosen = masks.chosen(site, index)
        if not self.memory.reused:
            # The derivative of one choice is cheaper than that of several narrow pieces.
            own = matrix.index_select(0, chosen.own)
            return list(own.split([count for _, count in chosen.pieces]))
        units, rows = self._rows.get((node, site), (None, matrix))
        if units is not chosen.units:
            rows = self.memory.choose((node, site), matrix, 0, chosen.units)
            self._rows[node, site] = chosen.units, rows
        return [rows.narrow(0, first, count) for first, count in chosen.pieces]
