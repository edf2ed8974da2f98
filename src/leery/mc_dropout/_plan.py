"""How a model's passes are run, as users are told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from leery.mc_dropout._engine import Engine
from leery.mc_dropout._masks import Masks, Site
from leery.mc_dropout._plain_loop import PlainLoop

__all__ = ["Plan", "StochasticLayer", "explain"]


_COUNTED = 8
"""Passes whose multiplications are counted."""


@dataclass(frozen=True)
class StochasticLayer:
    """A place where a pass draws at random.

    Attributes:
        name: of the submodule that draws; "" for the model itself.
        kind: the class of that submodule.
        rate: the probability of dropping a unit; None for other draws.
        shape: of a pass's mask, which all images share.
    """

    name: str
    kind: str
    rate: float | None
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """A line for people."""
        dropped = "random numbers" if self.rate is None else f"drops {self.rate:.3g}"
        return f"{self.name or 'the model'} ({self.kind}): {dropped}, mask {self.shape}"


@dataclass(frozen=True)
class Plan:
    """How a model's passes are run.

    Attributes:
        way: "graph" when the deterministic part is computed once and the rest once a pass; "loop"
            when each pass runs the whole model; "once" when there are no passes.
        reason: why it is not the graph; "" for the graph.
        layers: those that are read.
        stochastic: what draws at random, in the order of the forward pass.
        repeated: the share of a forward pass's multiplications that a pass repeats, in [0, 1],
            on average over the first passes; columns of linear layers that a mask drops are not
            multiplied.
        once: the share that is computed once for all passes, in [0, 1].
        caveat: what a pass may leave out, and why; "" when nothing.
    """

    way: Literal["graph", "loop", "once"]
    reason: str
    layers: tuple[str, ...]
    stochastic: tuple[StochasticLayer, ...]
    repeated: float
    once: float
    caveat: str = ""

    def __str__(self) -> str:
        """A few lines for people."""
        ways = {
            "graph": f"the deterministic part once, {self.repeated:.1%} of the work in each pass",
            "loop": f"the whole model in each pass, because {self.reason}",
            "once": f"one forward pass, because {self.reason}",
        }
        return "\n".join(
            [
                f"way: {self.way} ({ways[self.way]})",
                f"layers read: {', '.join(self.layers) or 'none'}",
                f"stochastic layers: {len(self.stochastic) or 'none'}",
                *(f"  {layer}" for layer in self.stochastic),
                *([f"caveat: {self.caveat}"] if self.caveat else []),
            ]
        )


def explain(
    loop: PlainLoop, engine: Engine | None, reason: str, pair: Tensor, masks: Masks
) -> Plan:
    """The plan of running ``loop``, or ``engine`` where there is one."""
    repeated, shared = 1.0, 0.0
    if engine is not None:
        once = engine.prefix(pair)
        some = masks.first(_COUNTED)
        part = _flops(lambda: engine.each_pass(once, some)) / len(some)
        full = _flops(lambda: loop.one_pass(pair, masks, 0))
        if full:
            repeated, shared = part / full, _flops(lambda: engine.prefix(pair)) / full
    return Plan(
        way="graph" if engine is not None else "loop",
        reason=reason,
        layers=loop.layers,
        stochastic=tuple(_layer(loop.model, site) for site in loop.sites),
        repeated=min(repeated, 1.0),
        once=shared,
        caveat=loop.caveat,
    )


def _layer(model: nn.Module, site: Site) -> StochasticLayer:
    kind = type(model.get_submodule(site.name)).__name__
    return StochasticLayer(site.name, kind, site.rate, site.shape)


def _flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
