"""Attacks whose pixel bounds can be set by the code that runs them."""

from typing import Protocol, Self, runtime_checkable

from leery._checks import Bounds
from leery.attacks._gradient import Attack

__all__ = ["BoundedAttack", "placed"]


@runtime_checkable
class BoundedAttack(Attack, Protocol):
    """An attack whose pixel bounds can be set."""

    def within(self, bounds: Bounds | None) -> Self:
        """Return a copy with these bounds, or self if it has bounds or none are given."""


def placed(attack: Attack, bounds: Bounds | None) -> Attack:
    """Return the attack with these bounds if it supports bounds, else unchanged."""
    return attack.within(bounds) if isinstance(attack, BoundedAttack) else attack
