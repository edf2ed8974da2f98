"""Linear layers around dropout, which multiply only what a pass keeps.

A mask on the input of a linear layer is a choice of the columns of its weight, and a mask on its
output a choice of the rows: what is dropped there need not be computed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.nn import functional

from leery.mc_dropout._graph import STEADY_ROWS
from leery.mc_dropout._masks import Masks, Site
from leery.mc_dropout._once import Once, Values

__all__ = ["Columns", "find_columns"]

_ATEN = torch.ops.aten
_RESHAPES = (_ATEN.flatten.using_ints, _ATEN.reshape.default)


@dataclass(frozen=True)
class Columns:
    """A linear layer between dropouts, computed on kept units only.

    Attributes:
        linear: its node.
        source: the node that holds its input before the dropout.
        inputs: the site of the dropout in front of it; None when there is none.
        rate: the probability with which that drops a unit.
        packed: whether the source holds the kept units only.
        outputs: the site of the dropout behind it, whose kept units are all that is asked for;
            None when everything is.
    """

    linear: fx.Node
    source: fx.Node
    inputs: int | None
    rate: float = 0.0
    packed: bool = False
    outputs: int | None = None

    @property
    def reads(self) -> list[fx.Node]:
        """The nodes whose values it is computed from."""
        return [self.source, *(node for node in _parameters(self.linear) if node is not None)]

    def compute(self, once: Once, values: Values, masks: Masks, index: int) -> Tensor:
        """``dropout(x) @ W.T + b`` of pass ``index``, ``(N, units asked for)``.

        Computed as the transpose of a contiguous matrix: rows of ``x.T`` are whole blocks, which
        are cheap to choose, and the next such layer takes the result as it is.
        """
        bias_node = _parameters(self.linear)[1]
        bias: Tensor | None = None if bias_node is None else values[bias_node]
        source: Tensor = values[self.source]
        rows = self._rows(once, source, masks, index)
        if self.outputs is not None and bias is not None:
            bias = bias.index_select(0, masks.kept(self.outputs, index))
        chosen = self._weight(once, values, masks, index)
        if rows.shape[1] < STEADY_ROWS:
            rows = _filled(rows)
        scale = 1 / (1 - self.rate)
        product = (
            (chosen @ rows).mul_(scale)
            if bias is None
            else torch.addmm(bias.unsqueeze(1), chosen, rows, alpha=scale)
        )
        return product.t()[: len(source)]

    def _weight(self, once: Once, values: Values, masks: Masks, index: int) -> Tensor:
        """``W`` between the kept units: ``(units asked for, kept inputs)``."""
        node = _parameters(self.linear)[0]
        weight: Tensor = values[node]

        def choose() -> Tensor:
            chosen = weight
            if self.outputs is not None:
                asked = masks.kept(self.outputs, index)
                chosen = once.memory.choose("outputs", self.linear, chosen, 0, asked)
            if self.inputs is not None:
                kept = masks.kept(self.inputs, index)
                chosen = once.memory.choose("inputs", self.linear, chosen, 1, kept)
            # A copy of its own if it is to be kept.
            return chosen.clone() if steady and once.memory.has_room(chosen.numel()) else chosen

        steady = node.op == "get_attr"
        return once.memory.keep((self.linear, index), choose) if steady else choose()

    def _rows(self, once: Once, source: Tensor, masks: Masks, index: int) -> Tensor:
        """``x.T`` of the kept units: ``(kept inputs, N)``."""
        chosen = None if self.inputs is None or self.packed else masks.kept(self.inputs, index)
        if self.source in once.values:
            rows = once.matrix(self.source, lambda: source.flatten(1).t().contiguous())
        else:
            rows = source.flatten(1).t()
        if chosen is None:
            return rows
        if rows.is_contiguous():
            return once.memory.choose("input", self.source, rows, 0, chosen)
        return once.memory.choose("input", self.source, rows.t(), 1, chosen).t()


def find_columns(
    sites: Mapping[fx.Node, Site], suffix: Sequence[fx.Node]
) -> tuple[dict[fx.Node, Columns], set[fx.Node]]:
    """How linear layers around dropout are computed, and the nodes that this makes superfluous.

    Args:
        sites: the nodes that draw, in the order of the calls.
        suffix: the nodes that depend on a mask and are needed.
    """
    found: dict[fx.Node, Columns] = {}
    absorbed: set[fx.Node] = set()
    alone: dict[fx.Node, int] = {}
    for place, (dropout, site) in enumerate(sites.items()):
        chains = _chains_to_linear(dropout, site)
        if chains is None:
            continue
        source, rate = _source(dropout), float(dropout.args[1])  # type: ignore[arg-type]
        for linear, between in chains:
            found[linear] = Columns(linear, source, place, rate)
            absorbed.update(between)
        absorbed.add(dropout)
        if site.rate is not None and all(not between for _, between in chains):
            alone[dropout] = place
    for dropout, place in alone.items():
        before = _linear_before(dropout, sites, suffix)
        if before is None:
            continue
        step = found.get(before) or Columns(before, before.all_input_nodes[0], None)
        found[before] = replace(step, outputs=place)
        for user in dropout.users:
            found[user] = replace(found[user], packed=True)
    return found, absorbed


def _filled(rows: Tensor) -> Tensor:
    """``(K, N)`` with zeros up to :data:`STEADY_ROWS` columns, in the layout that it has."""
    short = STEADY_ROWS - rows.shape[1]
    if rows.is_contiguous():
        return functional.pad(rows, (0, short))
    return functional.pad(rows.t(), (0, 0, 0, short)).t()


def _linear_before(
    dropout: fx.Node, sites: Mapping[fx.Node, Site], suffix: Sequence[fx.Node]
) -> fx.Node | None:
    """The linear layer of which nothing but what a dropout keeps is asked for.

    Between the two is nothing but functions of each unit by itself.
    """
    node = _source(dropout)
    while node in suffix and len(node.users) == 1:
        if node.target is _ATEN.linear.default:
            return node if _is_flat(node) else None
        if node in sites or not _is_pointwise(node):
            return None
        (node,) = node.all_input_nodes
    return None


def _is_pointwise(node: fx.Node) -> bool:
    """Whether a node is a function of each number of one tensor by itself."""
    return (
        isinstance(node.target, torch._ops.OpOverload)  # noqa: SLF001 - the type of ATen calls
        and torch.Tag.pointwise in node.target.tags
        and torch.Tag.nondeterministic_seeded not in node.target.tags
        and len(node.all_input_nodes) == 1
    )


def _source(dropout: fx.Node) -> fx.Node:
    """The node that a dropout acts on."""
    source = dropout.args[0]
    assert isinstance(source, fx.Node)
    return source


def _chains_to_linear(dropout: fx.Node, site: Site) -> list[tuple[fx.Node, list[fx.Node]]] | None:
    """The linear layers that a dropout ends in through reshapes alone, with those reshapes.

    None when it feeds anything else, or where a linear layer does not see one flat vector of all
    the units of an image.
    """
    if dropout.target is not _ATEN.dropout.default or site.dimension != 0 or site.folds:
        return None
    units = math.prod(site.shape)
    found: list[tuple[fx.Node, list[fx.Node]]] = []
    waiting: list[tuple[fx.Node, list[fx.Node]]] = [(dropout, [])]
    while waiting:
        node, between = waiting.pop()
        for user in node.users:
            if _is_linear_of(user, node) and _is_flat(node, units) and _is_flat(user):
                found.append((user, between))
            elif user.target in _RESHAPES:
                waiting.append((user, [*between, user]))
            else:
                return None
    return found or None


def _is_linear_of(user: fx.Node, node: fx.Node) -> bool:
    return user.target is _ATEN.linear.default and user.args[0] is node


def _is_flat(node: fx.Node, units: int | None = None) -> bool:
    """Whether a node is one vector an image, ``(N, units)``."""
    shape = node.meta["val"].shape
    return len(shape) == 2 and units in (None, shape[1])  # noqa: PLR2004 - images and units


def _parameters(linear: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The weight and bias nodes of a linear layer."""
    weight, bias = (*linear.args[1:], None)[:2]
    return weight, bias  # type: ignore[return-value]
