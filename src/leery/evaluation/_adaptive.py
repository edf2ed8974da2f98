"""What an attacker who knows the detector achieves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from leery._checks import Bounds, check_count
from leery.attacks import Attack, GradientAttack, NormName
from leery.attacks.adaptive import (
    Indicators,
    Target,
    adaptive_attacks,
    indicators,
    worst_case,
)
from leery.detector import Detector
from leery.errors import InputError, NotFittedError
from leery.evaluation._evaluate import check_unseen
from leery.evaluation._intervals import Interval, share_interval
from leery.inputs import Images, labelled_batches
from leery.metrics import AuxiliaryAgreement
from leery.models import predict

__all__ = ["AdaptiveEvaluation", "evaluate_adaptive", "robust_error", "target_of"]

_LOOKED_AT = 20
"""Number of images on which signs of failure are looked for."""


_WITHOUT_GRADIENT = ("transfer", "squares")
"""Attacks that use no gradient of the score, in which signs of failure cannot be looked for."""


@dataclass(frozen=True)
class AdaptiveEvaluation:
    """What an attacker achieves who knows classifier and detector.

    An attack succeeds if the image is misclassified and not flagged.

    Attributes:
        norm: "linf" or "l2".
        epsilon: the largest distance, in units of the pixels.
        steps: number of steps; attacks towards a chosen class, transfer and feature matching take
            a fifth of them.
        restarts: number of runs of each attack; the first one starts at the clean image.
        images: number of images, all of which the classifier gets right.
        evaded: share of them for which an attack succeeded.
        found_after: share of them for which an attack succeeded in the first restart, by the number
            of steps.
        by: number of successes by attack; each image counts for the first one that succeeded.
        certified: share of them for which it is proved that none succeeds; None without a sentinel
            and in other norms.
        signs: signs that the attack that succeeded most often has failed, on the first 20 images.
    """

    norm: NormName
    epsilon: float
    steps: int
    restarts: int
    images: int
    evaded: Interval
    found_after: Mapping[int, float]
    by: Mapping[str, int]
    certified: Interval | None
    signs: Indicators


def evaluate_adaptive(
    detector: Detector,
    images: Images,
    labels: Tensor | None = None,
    *,
    epsilon: float,
    norm: NormName = "linf",
    steps: int = 100,
    restarts: int = 1,
    limit: int = 100,
    bounds: Bounds | None = None,
    seed: int = 0,
    advance: Callable[[float], object] = lambda _share: None,
) -> AdaptiveEvaluation:
    """Attack a detector with knowledge of everything about it.

    More steps, more restarts and other attacks may find more: the result is a lower bound of what
    an attacker can achieve.

    Args:
        detector: a calibrated detector.
        images: ``(N, ...)``, not used in fitting or calibration; or batches with labels.
        labels: int ``(N,)``, the true classes.
        epsilon: the largest distance, in units of the pixels.
        norm: "linf" or "l2".
        steps: number of steps; attacks towards a chosen class, transfer and feature matching take
            a fifth of them.
        restarts: number of runs of each attack; the first one starts at the clean image.
        limit: largest number of images that are attacked, the first that the classifier gets right.
        bounds: lowest and highest pixel value, or a pair per channel; by default those of the
            detector, else (0, 1).
        seed: random seed.
        advance: function that is called with the completed fraction, in [0, 1].

    Raises:
        NotFittedError: when the detector is not calibrated.
        InputError: when a setting is outside its range, the classifier gets no image right, or the
            detector has learned from more than a few of the images.
    """
    check_count(limit, "images")
    if not epsilon > 0:
        message = f"expected an epsilon above 0, got {epsilon:g}; pass the largest distance"
        raise InputError(message)
    target = target_of(detector)
    chosen, truth = _right(detector, images, labels, limit)
    attacks = adaptive_attacks(
        target,
        epsilon,
        classes=detector.classes_,
        steps=steps,
        norm=norm,
        bounds=bounds or detector.inputs_.bounds,
        pool=chosen,
    )
    found = worst_case(
        target, attacks, chosen, truth, restarts=restarts, seed=seed, advance=advance
    ).rows
    signs = indicators(
        target, _strongest(attacks, found.by), chosen[:_LOOKED_AT], truth[:_LOOKED_AT], seed=seed
    )
    return AdaptiveEvaluation(
        norm=norm,
        epsilon=epsilon,
        steps=steps,
        restarts=restarts,
        images=len(chosen),
        evaded=share_interval(int(found.evaded.sum()), len(chosen)),
        found_after=_growth(found),
        by=found.by[found.evaded].value_counts().to_dict(),
        certified=_certified(detector, chosen, truth, epsilon) if norm == "linf" else None,
        signs=signs,
    )


def _certified(
    detector: Detector, images: Tensor, labels: Tensor, epsilon: float
) -> Interval | None:
    """The share of the images on which no attack can succeed; None without a sentinel."""
    if detector.sentinel_ is None:
        return None
    proved = detector.sentinel_.certify(images, labels, epsilon=epsilon)
    return share_interval(int(proved.sum()), len(images))


def _strongest(attacks: Mapping[str, Attack], by: pd.Series) -> GradientAttack:
    """The attack along gradients of the score that succeeded most often, or the first one."""
    made = {
        name: own
        for name, own in attacks.items()
        if isinstance(own, GradientAttack) and name not in _WITHOUT_GRADIENT
    }
    counts = by[by.isin(list(made))].value_counts()
    return made[counts.index[0]] if len(counts) else next(iter(made.values()))


def _growth(rows: pd.DataFrame) -> dict[int, float]:
    """The share for which an attack succeeded in the first restart, by the number of steps."""
    early = rows.steps[rows.evaded & (rows.restart <= 0)]
    return {
        int(steps): float((early <= steps).sum() / len(rows)) for steps in sorted(early.unique())
    }


def _right(
    detector: Detector, images: Images, labels: Tensor | None, limit: int
) -> tuple[Tensor, Tensor]:
    """The first images that the classifier gets right, and their classes.

    Raises:
        InputError: when there is none.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    learned = count = 0
    for batch, truth in labelled_batches(images, labels):
        if truth is None:
            message = "expected labels, got none; pass evaluate_adaptive(detector, images, labels)"
            raise InputError(message)
        count += len(batch)
        learned += check_unseen(detector, batch, learned, count)
        hits = predict(detector.model, batch).cpu() == truth.cpu()
        kept.append((batch[hits], truth.cpu()[hits].long()))
        if sum(len(own) for _, own in kept) >= limit:
            break
    found, classes = (torch.cat(parts)[:limit] for parts in zip(*kept, strict=True))
    if not len(found):
        message = "expected a correctly classified image, got none; check model and labels"
        raise InputError(message)
    return found, classes


def target_of(detector: Detector, *, judged_by: Detector | None = None) -> Target:
    """The target of attackers who know a detector.

    Args:
        detector: a calibrated detector, whose gradients the attacks use.
        judged_by: the detector whose verdicts count, such as one with other dropout masks; by
            default the same one.

    Raises:
        NotFittedError: when the detector is not calibrated.
    """
    judging = judged_by or detector
    for guard in (detector, judging):
        if guard.calibration_ is None:
            message = (
                "expected a detector after calibrate(clean, fpr=...), got one before it; call it "
                "first"
            )
            raise NotFittedError(message)

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        verdicts = judging.judge(images)
        calibration = judging.calibration_
        assert calibration is not None
        excess = verdicts.score - calibration.thresholds(verdicts.predicted)
        if verdicts.sentinel is not None:
            assert judging.sentinel_ is not None
            beside = judging.sentinel_.calibration_
            assert beside is not None
            own = verdicts.sentinel - beside.thresholds(verdicts.predicted)
            excess = np.maximum(excess, own)
        return torch.from_numpy(verdicts.predicted), torch.from_numpy(excess)

    apart = None
    if detector.sentinel_ is not None:
        apart = partial(detector.differentiable_excess, apart=True)
    return Target(detector.model, detector.differentiable_excess, judge, _helpers(detector), apart)


def _helpers(detector: Detector) -> tuple[nn.Module, ...]:
    """The auxiliary network and the sentinel's network, where there are any."""
    found = [
        metric.auxiliary
        for metric in detector.metrics_.values()
        if isinstance(metric, AuxiliaryAgreement) and metric.auxiliary is not None
    ]
    if detector.sentinel_ is not None:
        found.append(detector.sentinel_.network_)
    return tuple(found)


def robust_error(right: np.ndarray, accepted: np.ndarray, evaded: np.ndarray) -> float:
    """The robust error of a classifier that may reject images.

    It is the share of wrong decisions among the images that are decided on: clean or, where an
    attack evades the guard, attacked.

    Args:
        right: bool ``(N,)``, whether the classifier gets the clean image right.
        accepted: bool ``(N,)``, whether the clean image is not flagged.
        evaded: bool ``(N,)``, whether an attack on the image is misclassified and not flagged; it
            counts for images that the classifier gets right.

    Raises:
        InputError: when the lengths differ, or no image is decided on.

    Source:
        Stutz, Hein, Schiele (2020), arXiv:1910.06259, equation 7.

    Example:
        >>> right, accepted = np.array([True, True, False]), np.array([True, False, True])
        >>> robust_error(right, accepted, np.array([False, True, False]))
        0.666...
    """
    if not len(right) == len(accepted) == len(evaded):
        lengths = f"{len(right)}, {len(accepted)} and {len(evaded)}"
        message = f"expected three masks of the same length, got {lengths}; correct them"
        raise InputError(message)
    changed = evaded & right
    decided = accepted | changed
    if not decided.any():
        message = "expected an accepted image, got none; raise the threshold"
        raise InputError(message)
    return float(((~right & accepted) | changed).sum() / decided.sum())
