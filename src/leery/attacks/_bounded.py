"""Attacks that take the bounds of the pixels from whoever runs them."""

from typing import Protocol, Self, runtime_checkable

from leery._checks import Bounds
from leery.attacks._gradient import Attack

__all__ = ["BoundedAttack", "placed"]


@runtime_checkable
class BoundedAttack(Attack, Protocol):
    """An attack that can be given bounds."""

    def within(self, bounds: Bounds | None) -> Self:
        """The same attack within these bounds, unless it was given bounds of its own."""


def placed(attack: Attack, bounds: Bounds | None) -> Attack:
    """The attack within these bounds if it can be given any, else as it is."""
    return attack.within(bounds) if isinstance(attack, BoundedAttack) else attack
