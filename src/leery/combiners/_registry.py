"""The combiners that a detector knows by name."""

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
"""The combiners of a detector by name. The study has the paper's regression, without bounds."""


def make_combiner(name: str, facts: Sequence[Facts]) -> Combiner:
    """A combiner, not yet fitted.

    Raises:
        InputError: when the name is unknown.
    """
    if name not in COMBINERS:
        choices = " or ".join(f'"{known}"' for known in COMBINERS)
        message = f"expected combiner {choices}, got {name!r}; name one"
        raise InputError(message)
    return COMBINERS[name](facts)
