"""What passes share: values computed once a batch, matrices chosen once a call, memory."""

import math
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from leery.mc_dropout._masks import Masks

__all__ = ["Choose", "Memory", "Once", "Values"]

MOST_KEPT = 2**24
"""Numbers of matrices that are kept for the next batch; float32 makes that 64 MiB."""

Values = dict[fx.Node, Any]

_Key = tuple[fx.Node, int]

Choose = Callable[[Hashable, Tensor, int, Tensor], Tensor]
"""Chosen rows or columns of a matrix: what for, of what, in which dimension, which."""


class Memory:
    """What the batches of a call share, in whichever threads they are worked on.

    Args:
        keeps: whether there is a next batch to keep anything for.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        self._room = MOST_KEPT if keeps else 0
        self._kept: dict[_Key, tuple[Tensor, ...]] = {}
        self._booked: set[_Key] = set()
        self._booking = threading.Lock()
        self._own = threading.local()

    def keep(
        self, key: _Key, numbers: Callable[[], int], make: Callable[[Choose], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What ``make`` gives, or gave before: kept while there is room.

        Args:
            key: of what is made.
            numbers: how many will be in it.
            make: is told how to choose: into memory of its own for what is kept.
        """
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        size = numbers()
        with self._booking:
            # Another thread may be making the same.
            if key not in self._booked and size <= self._room:
                self._room -= size
                self._booked.add(key)
        if key not in self._booked:
            return make(self.choose)
        return self._kept.setdefault(key, make(_chosen))

    def choose(self, kind: Hashable, matrix: Tensor, dim: int, index: Tensor) -> Tensor:
        """The chosen rows or columns of a matrix, until this thread's next choice of this kind.

        It is written over the last one: to ask the system for so much fresh memory takes longer
        than to fill it.
        """
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

    def rows(self, node: fx.Node, site: int, matrix: Tensor, masks: Masks, index: int) -> Tensor:
        """The rows of a matrix that a dropout keeps in a pass, chosen once for a pair of passes.

        Args:
            node: whose value the matrix holds.
            site: the place of the dropout.
            matrix: ``(units, N)``, the same in each pass.
            masks: of all passes.
            index: of the pass.
        """
        shared = masks.shared(site, index)
        units, chosen = self._rows.get((node, site), (None, matrix))
        if units is not shared.units:
            chosen = self.memory.choose((node, site), matrix, 0, shared.units)
            self._rows[node, site] = shared.units, chosen
        return chosen.narrow(0, shared.start, shared.count)
