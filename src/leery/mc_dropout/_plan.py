"""Description, for users, of how the passes of a model are run."""

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
"""Number of passes over which multiplications are counted."""


@dataclass(frozen=True)
class StochasticLayer:
    """A submodule that draws at random in each pass.

    Attributes:
        name: name of the submodule; "" for the model itself.
        kind: class name of the submodule.
        rate: the probability of dropping a unit; None for other draws.
        shape: shape of the mask of a pass, which all images share.
    """

    name: str
    kind: str
    rate: float | None
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """One-line summary."""
        dropped = "random numbers" if self.rate is None else f"drops {self.rate:.3g}"
        return f"{self.name or 'the model'} ({self.kind}): {dropped}, mask {self.shape}"


@dataclass(frozen=True)
class Plan:
    """Plan of how the passes of a model are run.

    Attributes:
        way: "graph" if the deterministic part is computed once and the rest once per pass; "loop"
            if each pass runs the whole model; "once" if there are no passes.
        reason: reason why the graph is not used; "" if it is.
        layers: layers that are read.
        stochastic: submodules that draw at random, in the order of the forward pass.
        repeated: fraction of the multiplications of a full forward pass that each pass repeats, in
            [0, 1], averaged over the first passes; dropped columns of linear layers are not
            multiplied.
        once: fraction of the multiplications that is done once for all passes, in [0, 1].
        caveat: dropout that a pass may omit, and why; "" if none.
    """

    way: Literal["graph", "loop", "once"]
    reason: str
    layers: tuple[str, ...]
    stochastic: tuple[StochasticLayer, ...]
    repeated: float
    once: float
    caveat: str = ""

    def __str__(self) -> str:
        """Multi-line summary."""
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
    """The plan for running ``engine`` if there is one, else ``loop``."""
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
