"""The attacks of someone who knows the detector, and the worst case over all of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from leery._checks import Bounds, check_count, check_images, check_labels
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
from leery.attacks.adaptive._queries import SquareSearch
from leery.attacks.adaptive._target import Target
from leery.models import device_of, isolated, run_fast

__all__ = ["Evasion", "adaptive_attacks", "worst_case"]

_LADDER = (0.01, 0.1, 1.0)
"""Fractions of an attack's steps after which images that evade the guard are set aside."""

_TOWARDS_EACH = 5
"""How many times fewer steps an attack towards a chosen class takes than the others."""

_MOST_CHOSEN = 9
"""Largest number of attacks towards a chosen class."""

_IMAGE_AXES = 4
"""Number of axes of images ``(N, channels, height, width)``."""


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
    """Attacks on classifier and detector together, by name.

    Args:
        target: the guarded classifier.
        epsilon: the radius of the ball.
        classes: the number of classes.
        steps: the number of steps; transfer, feature matching and attacks towards a chosen class
            take a fifth of them.
        norm: "linf" or "l2".
        bounds: lowest and highest pixel value, or a pair per channel; by default (0, 1).
        pool: clean images ``(M, ...)``, for feature matching, to see whether the images have
            height and width, and to rank wrong classes if there are more than ten; without them,
            "features" and "squares" are left out.

    Returns:
        "selective", "orthogonal", "weighted", "confident" (PGD-Conf), "transfer", "features";
        "squares", a random search in L-infinity for images ``(N, channels, height, width)``; and up
        to nine attacks towards a chosen class. Up to ten classes, "towards +k" attacks the true
        class plus k; with more, "towards likeliest k" attacks the class that has the k-th largest
        mean logit over the images of the pool that are classified as the true class, or, without a
        pool, "towards +k" attacks nine evenly spread classes.
    """
    known, accepted = target.excess, partial(Accepted, excess=target.excess)
    climb = partial(
        PGD, epsilon, steps=steps, step_size=epsilon / 10 or None, norm=norm, bounds=bounds
    )
    few = partial(climb, steps=max(1, steps // _TOWARDS_EACH))
    made: dict[str, Attack] = {
        "selective": climb(objective=partial(Selective, excess=known)),
        "orthogonal": climb(objective=partial(Orthogonal, excess=known)),
        "weighted": climb(objective=partial(Weighted, excess=target.apart or known)),
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
        if norm == "linf" and pool.ndim == _IMAGE_AXES:
            searched = partial(Selective, excess=known)
            made["squares"] = SquareSearch(epsilon, steps=steps, bounds=bounds, objective=searched)
    for name, towards in _chosen(target.model, classes, pool):
        made[name] = few(objective=partial(Targeted, excess=known, towards=towards))
    return made


def _chosen(model: nn.Module, classes: int, pool: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """Names of attacks, and the class that each attacks, by true class, int64 ``(classes,)``."""
    count = min(classes - 1, _MOST_CHOSEN)
    if count == classes - 1 or pool is None:
        for number in range(count):
            offset = 1 + number * (classes - 1) // count
            yield f"towards +{offset}", (torch.arange(classes) + offset) % classes
        return
    nearest = _likeliest(model, classes, pool).topk(count).indices
    for place in range(count):
        yield f"towards likeliest {place + 1}", nearest[:, place]


def _likeliest(model: nn.Module, classes: int, pool: Tensor) -> Tensor:
    """Mean logits by predicted class, ``(classes, classes)``; a class's own is the lowest."""
    place = device_of(model)
    with isolated(model, pool) as still, torch.no_grad():
        parts = [run_fast(still, batch.to(place)).cpu().double() for batch in pool.split(256)]
    logits = torch.cat(parts)
    # A class without images has the mean of all.
    found = logits.mean(0).repeat(classes, 1)
    for own in logits.argmax(1).unique():
        found[own] = logits[logits.argmax(1) == own].mean(0)
    return found.fill_diagonal_(-torch.inf)


@dataclass(frozen=True)
class Evasion:
    """What attacks achieved.

    Attributes:
        images: the images that evade the guard, and the clean ones where none was found,
            ``(N, ...)``.
        rows: a row per image: evaded; by, the attack ("" if none, "clean" without an attack);
            restart, from 0, -1 without an attack; steps, the number of steps of the attack.
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
    advance: Callable[[float], object] = lambda _share: None,
) -> Evasion:
    """Attack each image until one attack evades the guard.

    An attack succeeds if the image is misclassified and not flagged. Gradient attacks run with a
    hundredth, a tenth and all of their steps; images that evade the guard are then left out.

    Args:
        target: the guarded classifier.
        attacks: by name.
        images: ``(N, ...)``, clean.
        labels: int ``(N,)``, their true classes.
        restarts: number of runs of each attack, each with another seed; the first one starts at the
            clean images, the others at random points of the ball.
        seed: seed of the first run.
        advance: function that is called with the completed fraction of the attacks, in [0, 1].

    Raises:
        InputError: when restarts is below 1, or images or labels do not fit.
    """
    check_count(restarts, "restarts")
    check_images(images, floating=True)
    with isolated(target.model, images) as still, torch.no_grad():
        classes = run_fast(still, images[:1].to(device_of(target.model))).shape[1]
    check_labels(labels, len(images), classes)
    found = images.detach().clone()
    evaded = target.evaded_by(found, labels)
    rows = pd.DataFrame({"evaded": evaded.numpy(), "by": "", "restart": -1, "steps": 0})
    rows.loc[rows.evaded, "by"] = "clean"
    turns = list(_turns(attacks, restarts))
    for number, (name, restart, steps, attack) in enumerate(turns):
        advance(number / len(turns))
        left = (~evaded).nonzero().squeeze(1)
        if not len(left):
            break
        made = attack(target.model, images[left], labels[left], seed=seed + restart)
        hits = target.evaded_by(made, labels[left])
        evaded[left[hits]], found[left[hits]] = True, made[hits]
        where = left[hits].tolist()
        rows.loc[where, "evaded"], rows.loc[where, "by"] = True, name
        rows.loc[where, "restart"], rows.loc[where, "steps"] = restart, steps
    advance(1.0)
    return Evasion(found, rows)


def _turns(attacks: Mapping[str, Attack], restarts: int) -> Iterator[tuple[str, int, int, Attack]]:
    """Name, restart, number of steps and attack; all attacks with few steps come first."""
    for restart in range(restarts):
        for part in _LADDER:
            for name, attack in attacks.items():
                if isinstance(attack, GradientAttack) and attack.steps > 1:
                    steps = max(1, round(attack.steps * part))
                    own = replace(attack, steps=steps, random_start=restart > 0)
                    yield name, restart, steps, own
                elif part == _LADDER[-1]:
                    yield name, restart, 0, attack
