"""Combiners that can be selected by name."""

from collections.abc import Mapping, Sequence
from typing import Literal

from leery.combiners._base import Combiner, Facts
from leery.combiners._conformal import ConformalCombiner
from leery.combiners._logistic import MonotoneLogisticCombiner
from leery.errors import InputError

__all__ = ["COMBINERS", "CombinerName", "make_combiner"]

CombinerName = Literal["conformal", "logistic"]

COMBINERS: Mapping[str, type[Combiner]] = {
    "conformal": ConformalCombiner,
    "logistic": MonotoneLogisticCombiner,
}
"""Combiners by name. The paper's unconstrained regression is used only by the study."""


def make_combiner(name: str, facts: Sequence[Facts]) -> Combiner:
    """Make an unfitted combiner.

    Raises:
        InputError: when the name is unknown.
    """
    if name not in COMBINERS:
        choices = " or ".join(f'"{known}"' for known in COMBINERS)
        message = f"expected combiner {choices}, got {name!r}; choose one"
        raise InputError(message)
    return COMBINERS[name](facts)
