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
        relu: the node that alone reads it, whose value is made at once; None when there is none.
    """

    linear: fx.Node
    source: fx.Node
    inputs: int | None
    rate: float = 0.0
    packed: bool = False
    outputs: int | None = None
    relu: fx.Node | None = None

    @property
    def made(self) -> fx.Node:
        """The node whose value is computed."""
        return self.relu or self.linear

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
        count = len(values[self.source])
        rows = self._rows(once, values, masks, index)
        weights = self._matrices(once, values, masks, index)
        product = torch.mm(weights[0], rows[0])
        # Derivatives need each sum in memory of its own.
        out = None if product.requires_grad else product
        for weight, more in zip(weights[1:], rows[1:], strict=False):
            product = torch.addmm(product, weight, more, out=out)
        if len(weights) > len(rows):
            product.add_(weights[-1])
        if self.relu is not None:
            product.relu_()
        return product.t() if count >= STEADY_ROWS else product.t()[:count]

    def _matrices(self, once: Once, values: Values, masks: Masks, index: int) -> Sequence[Tensor]:
        """What :meth:`_chosen` gives, kept unless the parameters themselves are drawn."""
        nodes = [node for node in _parameters(self.linear) if node is not None]

        def choice(choose: Choose) -> tuple[Tensor, ...]:
            return tuple(self._chosen(choose, once, values, masks, index))

        if not all(node in once.values for node in nodes):
            return choice(once.memory.choose)
        sources = [values[node] for node in nodes]
        return once.memory.keep(
            self.linear, index, sources, lambda: self._numbers(masks, index), choice
        )

    def _numbers(self, masks: Masks, index: int) -> int:
        """How many :meth:`_chosen` gives, with or without a bias."""
        sites = (self.linear, self.outputs), (self.linear.all_input_nodes[0], self.inputs)
        units, inputs = (
            node.meta["val"].shape[1] if site is None else len(masks.chosen(site, index).own)
            for node, site in sites
        )
        return int(units * (inputs + 1))

    def _chosen(
        self, choose: Choose, once: Once, values: Values, masks: Masks, index: int
    ) -> Iterator[Tensor]:
        """``W / (1 - rate)`` between kept units, in the pieces of :meth:`_rows`; ``b`` as a column.

        A piece is ``(units asked for, kept inputs)``. All are the pass's, whatever the images:
        nothing that mixes images gets here.
        """
        node, bias_node = _parameters(self.linear)
        weight: Tensor = values[node]
        asked = None if self.outputs is None else masks.chosen(self.outputs, index).own
        if asked is not None:
            weight = choose((self.linear, "outputs"), weight, 0, asked)
        if self.inputs is None:
            yield weight
        else:
            chosen = masks.chosen(self.inputs, index)
            weight = choose((self.linear, "inputs"), weight, 1, chosen.own)
            weight /= 1 - self.rate
            pieces = [count for _, count in chosen.pieces]
            yield from weight.split(pieces, 1) if self._chooses_with_others(once) else [weight]
        if bias_node is not None:
            bias: Tensor = values[bias_node].unsqueeze(1)
            yield bias if asked is None else bias.index_select(0, asked)

    def _chooses_with_others(self, once: Once) -> bool:
        """Whether passes choose their inputs together, from a value that they share."""
        return self.inputs is not None and not self.packed and self.source in once.values

    def _rows(self, once: Once, values: Values, masks: Masks, index: int) -> list[Tensor]:
        """``x.T`` of the kept units, in pieces ``(kept inputs, N)``, N filled up."""
        source: Tensor = values[self.source]
        if self.source in once.values:
            whole = once.matrix(self.source, lambda: _filled(source.flatten(1).t().contiguous()))
            if self.inputs is None or self.packed:
                return [whole]
            return once.rows(self.source, self.inputs, whole, masks, index)
        rows = (source if source.ndim == 2 else source.flatten(1)).t()  # noqa: PLR2004 - images and units
        if self.inputs is None or self.packed:
            return [_filled(rows)]
        kept, kind = masks.chosen(self.inputs, index).own, (self.source, self.inputs)
        if rows.is_contiguous():
            return [_filled(once.memory.choose(kind, rows, 0, kept))]
        return [_filled(once.memory.choose(kind, rows.t(), 1, kept).t())]


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
    found = {linear: _with_relu(step) for linear, step in found.items()}
    return found, absorbed.union(step.relu for step in found.values() if step.relu is not None)


def _with_relu(step: Columns) -> Columns:
    users = list(step.linear.users)
    alone = len(users) == 1 and users[0].target is _ATEN.relu.default
    return replace(step, relu=users[0]) if alone else step


def _filled(rows: Tensor) -> Tensor:
    """``(K, N)`` with zeros up to :data:`STEADY_ROWS` columns, in the layout that it has."""
    short = STEADY_ROWS - rows.shape[1]
    if short <= 0:
        return rows
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
