"""Linear layers next to dropout, computed only for the units that a pass keeps.

A mask on the input of a linear layer selects columns of its weight, and a mask on its output
selects rows: what is dropped need not be computed.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from leery.mc_dropout._masks import Masks, Site
from leery.tuning import CACHED_ELEMENTS

__all__ = ["MaskedLinear", "WeightCache", "find_masked_linears", "is_pointwise"]

_ATEN = torch.ops.aten
_RESHAPES = (_ATEN.flatten.using_ints, _ATEN.reshape.default)

Values = Mapping[fx.Node, Any]

Weights = tuple[Tensor, ...]
"""The weight ``(needed units, kept inputs)`` of a pass and, if there is one, the bias as a column
``(needed units, 1)``."""


@dataclass(frozen=True)
class SharedParts:
    """Tensors of a linear layer that the passes over a batch share.

    Attributes:
        rows: the transposed input ``(units, N)``; None if it differs between passes.
        weights: weights of each pass; None if each pass selects its own.
    """

    rows: Tensor | None
    weights: Sequence[Weights] | None


@dataclass(frozen=True)
class MaskedLinear:
    """A linear layer between dropouts, computed on kept units only.

    Attributes:
        linear: node of the linear layer.
        source: the node that holds its input before the dropout.
        inputs: index of the dropout site before the layer; None if there is none.
        rate: probability that this dropout drops a unit.
        packed: True if the source holds only the kept units.
        outputs: index of the dropout site after the layer, if only the units kept there are needed;
            None if all units are.
    """

    linear: fx.Node
    source: fx.Node
    inputs: int | None
    rate: float = 0.0
    packed: bool = False
    outputs: int | None = None

    @property
    def parameters(self) -> list[fx.Node]:
        """The nodes of the weight and, if there is one, the bias."""
        return [node for node in _parameters(self.linear) if node is not None]

    @property
    def reads(self) -> list[fx.Node]:
        """The nodes that the layer is computed from."""
        return [self.source, *self.parameters]

    @property
    def matrix_size(self) -> int:
        """Number of elements of the weight."""
        return math.prod(_parameters(self.linear)[0].meta["val"].shape)

    def shared(self, values: Values, masks: Masks, cache: "WeightCache | None") -> SharedParts:
        """Tensors that all passes share.

        Args:
            values: results of the nodes that do not depend on a dropout.
            masks: masks of all passes.
            cache: cache of the weights for these masks, if any.
        """
        rows = weights = None
        if self.source in values:
            rows = values[self.source].flatten(1).t().contiguous()
        if cache is not None and all(node in values for node in self.parameters):
            weights = cache.weights(self, values, masks)
        return SharedParts(rows, weights)

    def compute(self, values: Values, masks: Masks, index: int, shared: SharedParts) -> Tensor:
        """``dropout(x) @ W.T + b`` of pass ``index``, ``(N, needed units)``.

        Computed as the transpose of a contiguous matrix: rows of ``x.T`` are contiguous and cheap
        to select, and the next masked layer can use the result without a copy.
        """
        rows = self._rows(values, masks, index, shared)
        if shared.weights is None:
            weight, *bias = self.selected(values, masks, index)
        else:
            weight, *bias = shared.weights[index]
        product = torch.addmm(bias[0], weight, rows) if bias else torch.mm(weight, rows)
        return product.t()

    def all_passes(self, values: Values, masks: Masks) -> Tensor:
        """``dropout(x) @ W.T + b`` of all passes and units, as one product with passes * N rows.

        Args:
            values: the source is ``(N, ...)`` or, where it differs from pass to pass,
                ``(passes, N, ...)``.
            masks: masks of all passes.

        Returns:
            ``(passes, N, units)``.
        """
        weight, *bias = (values[node] for node in self.parameters)
        rows = values[self.source]
        if self.inputs is not None:
            factors = masks.factors(self.inputs, self.rate, rows.dtype)
            differs = rows.ndim > self.source.meta["val"].ndim
            rows = rows.flatten(2 if differs else 1)
            if not differs and rows.device.type == "cpu" and not rows.requires_grad:
                # After a ReLU, many units are 0 in all of a few images; their gradients are not.
                used = rows.any(0).nonzero().squeeze(1)
                rows, factors, weight = (x.index_select(1, used) for x in (rows, factors, weight))
            rows = rows * factors.unsqueeze(1)
        return functional.linear(rows, weight, *bias)

    def selected(self, values: Values, masks: Masks, index: int) -> Weights:
        """The parameters of pass ``index``: ``W / (1 - rate)`` between kept units, and ``b``."""
        weight, *bias = (values[node] for node in self.parameters)
        if self.outputs is not None:
            asked = masks.kept(self.outputs)[index]
            weight = weight.index_select(0, asked)
            bias = [part.index_select(0, asked) for part in bias]
        if self.inputs is not None:
            weight = weight.index_select(1, masks.kept(self.inputs)[index]) / (1 - self.rate)
        return weight, *(part.unsqueeze(1) for part in bias)

    def selected_elements(self, masks: Masks) -> int:
        """Total number of elements of :meth:`selected` over all passes."""
        units, inputs = (
            [node.meta["val"].shape[1]] * len(masks)
            if site is None
            else [len(kept) for kept in masks.kept(site)]
            for node, site in (
                (self.linear, self.outputs),
                (self.linear.all_input_nodes[0], self.inputs),
            )
        )
        return sum(one * (other + 1) for one, other in zip(units, inputs, strict=True))

    def _rows(self, values: Values, masks: Masks, index: int, shared: SharedParts) -> Tensor:
        """``x.T`` of the kept units, ``(kept inputs, N)``."""
        rows = shared.rows
        if rows is None:
            rows = values[self.source].flatten(1).t()
        if self.inputs is None or self.packed:
            return rows
        kept = masks.kept(self.inputs)[index]
        if rows.is_contiguous():
            return rows.index_select(0, kept)
        return rows.t().index_select(1, kept).t()


class WeightCache:
    """Cache of the weights that fixed masks select, for later batches and calls.

    The weights of a layer are cached for all passes, or for none if they would exceed
    :data:`CACHED_ELEMENTS`.
    """

    def __init__(self) -> None:
        self._layers: dict[fx.Node, tuple[Weights, Sequence[Weights]]] = {}
        self._lock = threading.Lock()

    @property
    def elements(self) -> int:
        """Number of cached elements."""
        return sum(
            part.numel()
            for parameters, selected in self._layers.values()
            for weights in (parameters, *selected)
            for part in weights
        )

    def clear(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._layers = {}

    def weights(
        self, layer: MaskedLinear, values: Values, masks: Masks
    ) -> Sequence[Weights] | None:
        """The weights of each pass; None if they do not fit into the cache.

        They are selected again if the parameters have changed.
        """
        parameters = tuple(values[node] for node in layer.parameters)
        with self._lock:
            if layer.linear in self._layers:
                known, selected = self._layers[layer.linear]
                if _same(known, parameters):
                    return selected
                del self._layers[layer.linear]
            size = layer.selected_elements(masks) + sum(part.numel() for part in parameters)
            if self.elements + size > CACHED_ELEMENTS:
                return None
            selected = [layer.selected(values, masks, index) for index in range(len(masks))]
            copies = tuple(part.detach().clone() for part in parameters)
            self._layers[layer.linear] = copies, selected
            return selected


def _same(tensors: Weights, others: Weights) -> bool:
    """True if tensors have the same dtype and elements."""
    # torch.equal does not compare dtypes.
    return all(
        one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(tensors, others, strict=True)
    )


def find_masked_linears(
    sites: Mapping[fx.Node, Site], suffix: Sequence[fx.Node]
) -> tuple[dict[fx.Node, MaskedLinear], set[fx.Node]]:
    """The masked linear layers of a graph, and the nodes that they replace.

    Args:
        sites: the nodes that draw, in the order of the calls.
        suffix: the nodes that depend on a mask and are needed.
    """
    found: dict[fx.Node, MaskedLinear] = {}
    absorbed: set[fx.Node] = set()
    alone: dict[fx.Node, int] = {}
    for place, (dropout, site) in enumerate(sites.items()):
        chains = _chains_to_linear(dropout, site)
        if chains is None:
            continue
        source, rate = _source(dropout), float(dropout.args[1])  # type: ignore[arg-type]
        for linear, between in chains:
            found[linear] = MaskedLinear(linear, source, place, rate)
            absorbed.update(between)
        absorbed.add(dropout)
        if site.rate is not None and all(not between for _, between in chains):
            alone[dropout] = place
    for dropout, place in alone.items():
        before = _linear_before(dropout, sites, suffix)
        if before is None:
            continue
        step = found.get(before) or MaskedLinear(before, before.all_input_nodes[0], None)
        found[before] = replace(step, outputs=place)
        for user in dropout.users:
            found[user] = replace(found[user], packed=True)
    return found, absorbed


def _linear_before(
    dropout: fx.Node, sites: Mapping[fx.Node, Site], suffix: Sequence[fx.Node]
) -> fx.Node | None:
    """The linear layer of whose output only the units kept by a dropout are needed.

    Only elementwise functions lie between the two.
    """
    node = _source(dropout)
    while node in suffix and len(node.users) == 1:
        if node.target is _ATEN.linear.default:
            return node if _is_flat(node) else None
        if node in sites or not is_pointwise(node):
            return None
        (node,) = node.all_input_nodes
    return None


def is_pointwise(node: fx.Node) -> bool:
    """True if a node is an elementwise function of one tensor."""
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
    """The linear layers that a dropout feeds directly or through reshapes, with the reshapes.

    None if it feeds anything else, or if the input of a linear layer is not one flat vector of all
    units of an image.
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
    """True if a node is one vector per image, ``(N, units)``."""
    shape = node.meta["val"].shape
    return len(shape) == 2 and units in (None, shape[1])  # noqa: PLR2004 - images and units


def _parameters(linear: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The weight and bias nodes of a linear layer."""
    weight, bias = (*linear.args[1:], None)[:2]
    return weight, bias  # type: ignore[return-value]
