"""Weak defences must fall to the suite, or the suite is weak."""

import pytest
import torch
from torch import nn

from leery.attacks import GradientAttack
from leery.attacks.adaptive import Target, adaptive_attacks, indicators, worst_case
from tests.attacks.adaptive import toys
from tests.conftest import Batch

EPSILON = 0.2


TOYS = ["jump", "discretise", "blur", "neighbours"]


@pytest.fixture(params=[*TOYS, pytest.param("stable", marks=pytest.mark.slow)])
def toy(
    request: pytest.FixtureRequest, digit_net: nn.Module, training_digits: Batch
) -> tuple[str, Target]:
    """A weakly guarded classifier."""
    make = {
        "jump": toys.jump,
        "discretise": toys.discretise,
        "blur": toys.blur,
        "neighbours": lambda model: toys.nearest_neighbours(
            model, *(part[:2000] for part in training_digits)
        ),
        "stable": toys.stable_prediction,
    }
    return request.param, make[request.param](digit_net)


def test_a_toy_defence_falls(toy: tuple[str, Target], digits: Batch) -> None:
    name, target = toy
    images, labels = (part[:40] for part in digits)
    attacks = adaptive_attacks(target, EPSILON, classes=10, steps=100, pool=images)
    found = worst_case(target, attacks, images, labels)
    assert found.rows.evaded.mean() >= 0.95
    assert float((found.images - images).abs().max()) <= EPSILON + 1e-6
    assert torch.equal(target.evaded_by(found.images, labels), torch.tensor(found.rows.evaded))
    if name == "stable":  # each step runs the classifier twenty times
        return
    for alone in ("selective", "towards"):
        own = {known: attack for known, attack in attacks.items() if known.startswith(alone)}
        assert worst_case(target, own, images, labels).rows.evaded.mean() >= 0.95


def test_a_rounding_without_its_surrogate_shows_zero_gradients(
    digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:20] for part in digits)

    class Rounded(nn.Module):
        def forward(self, made: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = digit_net((made * 5).round() / 5)
            return logits

    target = toys.accepts_everything(Rounded().eval())
    attack = adaptive_attacks(target, EPSILON, classes=10, steps=50)["selective"]
    assert isinstance(attack, GradientAttack)
    assert "zero" in indicators(target, attack, images, labels).failed
