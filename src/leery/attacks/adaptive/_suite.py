"""The attacks of someone who knows the detector, and the worst case over all of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from leery._checks import Bounds, check_count
from leery.attacks._gradient import PGD, Attack, GradientAttack
from leery.attacks._norms import NormName
from leery.attacks.adaptive._backtracking import BacktrackingPGD
from leery.attacks.adaptive._objectives import (
    Accepted,
    FeatureMatching,
    Joint,
    Orthogonal,
    Selective,
    Targeted,
    Weighted,
)
from leery.attacks.adaptive._target import Target

__all__ = ["Evasion", "adaptive_attacks", "worst_case"]

LADDER = (0.01, 0.1, 1.0)
"""Fractions of an attack's steps after which images that evade the guard are set aside."""

_TOWARDS_EACH = 5
"""How many times fewer steps an attack towards a chosen class takes than the others."""


def adaptive_attacks(
    target: Target,
    epsilon: float,
    *,
    classes: int,
    steps: int = 1000,
    norm: NormName = "linf",
    bounds: Bounds | None = None,
    pool: Tensor | None = None,
) -> dict[str, Attack]:
    """Gradient attacks on classifier and detector together, by name.

    Args:
        target: the guarded classifier.
        epsilon: the radius of the ball.
        classes: the number of classes.
        steps: the number of steps; attacks towards a chosen class take a fifth of them.
        norm: "linf" or "l2".
        bounds: lowest and highest pixel value, or a pair per channel; by default (0, 1).
        pool: clean images ``(M, ...)`` for feature matching, which is left out without them.

    Returns:
        "selective", "orthogonal", "weighted", "confident" (PGD-Conf), "transfer", "features" and,
        for each offset k, "towards +k".
    """
    known, accepted = target.excess, partial(Accepted, excess=target.excess)
    climb = partial(PGD, epsilon, steps=steps, step_size=epsilon / 10, norm=norm, bounds=bounds)
    few = partial(climb, steps=max(1, steps // _TOWARDS_EACH))
    made: dict[str, Attack] = {
        "selective": climb(objective=partial(Selective, excess=known)),
        "orthogonal": climb(objective=partial(Orthogonal, excess=known)),
        "weighted": climb(objective=partial(Weighted, excess=known)),
        "confident": BacktrackingPGD(
            epsilon,
            steps=steps,
            norm=norm,
            bounds=bounds,
            objective=accepted,
        ),
        "transfer": few(objective=partial(Joint, helpers=target.helpers)),
    }
    if pool is not None:
        made["features"] = few(objective=partial(FeatureMatching, pool=pool, excess=known))
    for offset in range(1, classes):
        made[f"towards +{offset}"] = few(objective=partial(Targeted, offset=offset, excess=known))
    return made


@dataclass(frozen=True)
class Evasion:
    """What attacks achieved.

    Attributes:
        images: the images that evade the guard, and the clean ones where none was found,
            ``(N, ...)``.
        rows: a row per image: evaded; by, the attack ("" if none, "clean" without an attack);
            restart, from 0; steps, how many of its steps the attack had.
    """

    images: Tensor
    rows: pd.DataFrame


def worst_case(
    target: Target,
    attacks: Mapping[str, Attack],
    images: Tensor,
    labels: Tensor,
    *,
    restarts: int = 1,
    seed: int = 0,
) -> Evasion:
    """Attack each image until one attack evades the guard.

    An attack succeeds if the image is misclassified and not flagged. Gradient attacks run with a
    hundredth, a tenth and all of their steps; images that evade the guard are then left out. The
    first restart begins at the clean images, the others at random points of the ball.

    Args:
        target: the guarded classifier.
        attacks: by name.
        images: ``(N, ...)``, clean.
        labels: int ``(N,)``, their true classes.
        restarts: how often each attack is repeated, with another seed each time.
        seed: seed of the first restart.

    Raises:
        InputError: when there is less than one restart, or images or labels do not fit.
    """
    check_count(restarts, "restarts")
    found = images.detach().clone()
    evaded = target.evaded_by(found, labels)
    rows = pd.DataFrame({"evaded": evaded.numpy(), "by": "", "restart": -1, "steps": 0})
    rows.loc[rows.evaded, "by"] = "clean"
    for restart in range(restarts):
        for name, attack in attacks.items():
            for steps, rung in _rungs(attack, restart):
                left = (~evaded).nonzero().squeeze(1)
                if not len(left):
                    return Evasion(found, rows)
                made = rung(target.model, images[left], labels[left], seed=seed + restart)
                hits = left[target.evaded_by(made, labels[left])]
                evaded[hits] = True
                found[hits] = made[torch.isin(left, hits)]
                rows.loc[hits.tolist(), ["evaded", "by", "restart", "steps"]] = (
                    True, name, restart, steps,
                )  # fmt: skip
    return Evasion(found, rows)


def _rungs(attack: Attack, restart: int) -> Iterator[tuple[int, Attack]]:
    """The attack with more and more of its steps, and the number of these."""
    if not isinstance(attack, GradientAttack):
        yield 0, attack
        return
    for steps in sorted({max(1, round(attack.steps * part)) for part in LADDER}):
        yield steps, replace(attack, steps=steps, random_start=restart > 0)
