"""What passes share: values computed once a batch, matrices chosen once a call, memory."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Memory", "Once", "Values"]

MOST_KEPT = 2**24
"""Numbers of matrices that are kept for the next batch; float32 makes that 64 MiB."""

Values = dict[fx.Node, Any]

_Key = tuple[fx.Node, int]


class Memory:
    """What the batches of a call share, in whichever threads they are worked on.

    Args:
        keeps: whether there is a next batch to keep anything for.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        self._room = MOST_KEPT if keeps else 0
        self._kept: dict[_Key, Tensor] = {}
        self._own = threading.local()

    def has_room(self, numbers: int) -> bool:
        """Whether a matrix of so many numbers would be kept."""
        return numbers <= self._room

    def keep(self, key: _Key, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` gives, or gave before: kept while there is room."""
        if key in self._kept:
            return self._kept[key]
        made = make()
        if self.has_room(made.numel()):
            self._room -= made.numel()
            self._kept[key] = made
        return made

    def choose(self, kind: str, node: fx.Node, matrix: Tensor, dim: int, index: Tensor) -> Tensor:
        """The chosen rows or columns of a matrix, until this thread's next choice of this kind.

        It is written over the last one: to ask the system for so much fresh memory takes longer
        than to fill it.
        """
        buffers: dict[tuple[str, fx.Node], Tensor] = vars(self._own).setdefault("buffers", {})
        buffer = buffers.get((kind, node))
        if buffer is None or buffer.numel() < matrix.numel():
            buffer = buffers[kind, node] = matrix.new_empty(matrix.numel())
        shape = list(matrix.shape)
        shape[dim] = len(index)
        return torch.index_select(matrix, dim, index, out=buffer[: math.prod(shape)].view(shape))


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

    def matrix(self, node: fx.Node, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` makes of the value of a node of the deterministic part, made once."""
        if node not in self._matrices:
            self._matrices[node] = make()
        return self._matrices[node]
