"""Linear layers around dropout, which multiply only what a pass keeps.

A mask on the input of a linear layer is a choice of the columns of its weight, and a mask on its
output a choice of the rows: what is dropped there need not be computed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.nn import functional

from leery.mc_dropout._graph import STEADY_ROWS
from leery.mc_dropout._masks import Masks, Site
from leery.mc_dropout._once import Choose, Once, Values

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

    @property
    def matrix_size(self) -> int:
        """The numbers of ``W``."""
        return math.prod(_parameters(self.linear)[0].meta["val"].shape)

    def compute(self, once: Once, values: Values, masks: Masks, index: int) -> Tensor:
        """``dropout(x) @ W.T + b`` of pass ``index``, ``(N, units asked for)``.

        Computed as the transpose of a contiguous matrix: rows of ``x.T`` are whole blocks, which
        are cheap to choose, and the next such layer takes the result as it is.
        """
        source: Tensor = values[self.source]
        rows = self._rows(once, source, masks, index)
        count = rows.shape[1]
        if count < STEADY_ROWS:
            rows = _filled(rows)
        weight, *bias = once.memory.keep(
            (self.linear, index),
            lambda: self._numbers(masks, index),
            lambda choose: tuple(self._chosen(choose, values, masks, index)),
        )
        scale = 1 / (1 - self.rate)
        product = (
            torch.addmm(bias[0], weight, rows, alpha=scale) if bias else (weight @ rows).mul_(scale)
        )
        return product.t() if count >= STEADY_ROWS else product.t()[:count]

    def _numbers(self, masks: Masks, index: int) -> int:
        """How many :meth:`_chosen` gives, with or without a bias."""
        sites = (self.linear, self.outputs), (self.linear.all_input_nodes[0], self.inputs)
        units, inputs = (
            node.meta["val"].shape[1] if site is None else masks.shared(site, index).count
            for node, site in sites
        )
        return int(units * (inputs + 1))

    def _chosen(self, choose: Choose, values: Values, masks: Masks, index: int) -> Iterator[Tensor]:
        """``W`` between the kept units ``(units asked for, kept inputs)``; ``b`` as a column.

        Both are the pass's, whatever the images: nothing that mixes images gets here.
        """
        node, bias_node = _parameters(self.linear)
        chosen: Tensor = values[node]
        if self.outputs is not None:
            asked = masks.kept(self.outputs, index)
            chosen = choose((self.linear, "outputs"), chosen, 0, asked)
        if self.inputs is not None:
            kept = masks.kept(self.inputs, index)
            chosen = choose((self.linear, "inputs"), chosen, 1, kept)
        yield chosen
        if bias_node is not None:
            bias: Tensor = values[bias_node].unsqueeze(1)
            yield bias if self.outputs is None else bias.index_select(0, asked)

    def _rows(self, once: Once, source: Tensor, masks: Masks, index: int) -> Tensor:
        """``x.T`` of the kept units: ``(kept inputs, N)``."""
        site = None if self.packed else self.inputs
        if self.source in once.values:
            whole = once.matrix(self.source, lambda: source.flatten(1).t().contiguous())
            return whole if site is None else once.rows(self.source, site, whole, masks, index)
        flat = source if source.ndim == 2 else source.flatten(1)  # noqa: PLR2004 - images and units
        if site is None:
            return flat.t()
        kept = masks.kept(site, index)
        if flat.t().is_contiguous():
            return once.memory.choose((self.source, site), flat.t(), 0, kept)
        return once.memory.choose((self.source, site), flat, 1, kept).t()


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
