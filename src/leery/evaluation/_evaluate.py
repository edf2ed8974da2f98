"""Evaluation of a detector against attackers who do not know it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from leery._checks import Bounds, more_than_a_few
from leery.attacks import Attack, gaussian_noise, placed
from leery.detector import Detector, MetricTable
from leery.errors import InputError
from leery.evaluation._detection import POSITIVES, detection
from leery.evaluation._intervals import Interval, share_interval
from leery.evaluation._pool import Pool
from leery.evaluation._roc import flagged_at_fpr
from leery.evaluation._worst_case import every_attack_found
from leery.inputs import Images, labelled_batches
from leery.models import predict
from leery.observation import Scorer

__all__ = ["check_unseen", "evaluate"]

_SCORE, _FLAGGED = "score", "flagged"

_RATES = (0.01, 0.05)
"""False-alarm rates at which the worst case is also measured."""


def evaluate(
    scorer: Scorer,
    images: Images,
    labels: Tensor | None = None,
    *,
    attacks: Mapping[str, Attack],
    noise: float = 0.0,
    bounds: Bounds | None = None,
    seed: int = 0,
    baselines: Mapping[str, Scorer] | None = None,
) -> pd.DataFrame:
    """Measure how well a detector separates adversarial images from their originals.

    The attacker knows the classifier but not the detector; this is the weakest test that a detector
    must pass. Positives are the adversarial versions of the correctly classified images. Negatives
    are the originals, which the detector must not have seen, and, if ``noise`` is above 0, their
    noisy versions.

    Args:
        scorer: a :class:`leery.Detector` with a combiner, or any other
            :class:`leery.observation.Scorer`.
        images: ``(N, ...)``, not used in fitting or calibration; or batches with labels.
        labels: int ``(N,)``, the true classes.
        attacks: attacks by name.
        noise: standard deviation of the noisy versions; 0 for none.
        bounds: pixel bounds for noise and for attacks that have no bounds of their own; by default
            those of the detector, else (0, 1).
        seed: random seed of noise and attacks, to which the index of the batch is added.
        baselines: other detectors of the same classifier by name, which score the same images.

    Returns:
        One row per detector, attack and non-empty set of positives ("all", "successful", "failed").
        Columns: detector ("detector", or the name of a baseline), attack, positives, success
        (fraction of adversarial images that are misclassified), the attributes of
        :class:`leery.evaluation.Detection` and, for a calibrated detector, found (fraction of
        positives flagged), found_low and found_high (its 95 % confidence interval), false_alarms
        and false_alarms_noisy. Further columns have the same value in every row of a detector: the
        share, among the images on which an attack succeeds, of those on which every successful
        attack is flagged, at a false-alarm rate of 1 % (every_attack_at_1_fpr), of 5 %
        (every_attack_at_5_fpr) and, for a calibrated detector, at its threshold (every_attack, with
        its 95 % confidence interval every_attack_low and every_attack_high); NaN if no attack
        succeeds. The thresholds for 1 % and 5 % are set on the negatives of this evaluation itself,
        so these shares have no interval. For a detector with a sentinel, the attributes of
        :class:`leery.evaluation.Detection` and every_attack_at_* are those of the combiner's score
        alone; found, false_alarms and every_attack are those of the verdict, combiner and sentinel
        together.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when images and labels do not match, there is no attack, or the detector has
            learned from more than a few of the images.
    """
    if not isinstance(attacks, Mapping) or not all(map(callable, attacks.values())):
        message = (
            f"expected attacks by name, got {type(attacks).__name__}; pass a dictionary such as "
            '{"pgd": leery.attacks.PGD(0.1)}'
        )
        raise InputError(message)
    if not attacks:
        message = "expected at least one attack, got none; pass some"
        raise InputError(message)
    scorers = {"detector": scorer, **(baselines or {})}
    parts, classes = _parts(scorers, _labelled(images, labels), attacks, noise, bounds, seed)
    tables = {name: MetricTable.joined(found) for name, found in parts.items()}
    found: list[dict[str, Any]] = []
    for detector in scorers:
        clean, noisy = tables[detector, "clean"], tables.get((detector, "noisy"))
        pools = {
            name: Pool.of_versions(clean, tables[detector, f"attack {name}"], noisy, classes)
            for name in attacks
        }
        worst = _every_attack(list(pools.values()))
        for name, pool in pools.items():
            found += [{"detector": detector, **row, **worst} for row in _rows(pool, name)]
    order = {name: place for place, name in enumerate(attacks)}
    return pd.DataFrame(found).sort_values(
        "attack", key=lambda names: names.map(order), kind="stable", ignore_index=True
    )


def _parts(
    scorers: Mapping[str, Scorer],
    batches: Iterator[tuple[Tensor, Tensor]],
    attacks: Mapping[str, Attack],
    noise: float,
    bounds: Bounds | None,
    seed: int,
) -> tuple[dict[tuple[str, str], list[MetricTable]], np.ndarray]:
    """Results of each detector on each version of the images, and the true classes."""
    detector = scorers["detector"]
    known = bounds or _bounds_of(detector)
    parts: dict[tuple[str, str], list[MetricTable]] = {}
    truths: list[np.ndarray] = []
    learned = 0
    for number, (batch, truth) in enumerate(batches):
        own = seed + number
        truths.append(truth.cpu().numpy())
        learned += check_unseen(detector, batch, learned, sum(map(len, truths)))
        versions = {"clean": batch}
        if noise:
            limits = known or (0.0, 1.0)
            versions["noisy"] = gaussian_noise(batch, noise, seed=own, bounds=limits)
        for name, attack in attacks.items():
            run, seeded = placed(attack, known), {"seed": own} if own else {}
            versions[f"attack {name}"] = run(detector.model, batch, truth, **seeded)
        for version, shown in versions.items():
            for name, judge in scorers.items():
                parts.setdefault((name, version), []).append(_judged(judge, shown))
    return parts, np.concatenate(truths)


def _labelled(images: Images, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    for batch, truth in labelled_batches(images, labels):
        if truth is None:
            message = "expected the labels of the images, got None; pass them"
            raise InputError(message)
        yield batch, truth


def check_unseen(scorer: Scorer, images: Tensor, before: int, count: int) -> int:
    """Refuse images when the detector has learned from more than a few of them so far.

    Args:
        scorer: the detector.
        images: the newest batch.
        before: how many of the earlier images it has learned from.
        count: the number of images so far.

    Returns:
        How many of this batch it has learned from.

    Raises:
        InputError: when it has learned from more than a few.
    """
    found = int(scorer.has_seen(images).sum()) if isinstance(scorer, Detector) else 0
    if more_than_a_few(before + found, count):
        message = (
            f"expected images that the detector has not learned from, got {before + found} of "
            f"{count} that the fit or the combiner has seen; evaluate on others"
        )
        raise InputError(message)
    return found


def _bounds_of(scorer: Scorer) -> Bounds | None:
    return scorer.inputs_.bounds if isinstance(scorer, Detector) else None


def _judged(scorer: Scorer, images: Tensor) -> MetricTable:
    """A table with the score and the verdict (NaN if there is none) of each image."""
    if isinstance(scorer, Detector):
        verdicts = scorer.judge(images)
        score, predicted, flagged = verdicts.score, verdicts.predicted, verdicts.adversarial
    else:
        score = np.asarray(scorer.score(images), dtype=np.float64)
        predicted, flagged = predict(scorer.model, images).cpu().numpy(), None
    verdict = np.full(len(score), np.nan) if flagged is None else flagged.astype(np.float64)
    return MetricTable((_SCORE, _FLAGGED), np.stack([score, verdict], 1), predicted)


def _rows(pool: Pool, name: str) -> list[dict[str, Any]]:
    counts = {
        "all": pool.adversarial,
        "successful": pool.successful,
        "failed": pool.adversarial & ~pool.successful,
    }
    scores = pool.table.column(_SCORE)
    return [
        {
            "attack": name,
            "positives": positives,
            "success": pool.attack_success,
            **asdict(detection(pool, scores, positives)),
            **_shares(pool, counts[positives]),
        }
        for positives in POSITIVES
        if counts[positives].any()
    ]


def _every_attack(pools: Sequence[Pool]) -> dict[str, float]:
    """Shares of images on which every successful attack is flagged; one pool per attack."""
    verdicts = {
        f"_at_{100 * rate:.0f}_fpr": [
            flagged_at_fpr(pool.table.column(_SCORE), pool.adversarial, rate) for pool in pools
        ]
        for rate in _RATES
    }
    if not any(np.isnan(pool.table.column(_FLAGGED)).any() for pool in pools):
        verdicts[""] = [pool.table.column(_FLAGGED) > 0 for pool in pools]
    success = np.stack([pool.successful[pool.adversarial] for pool in pools])
    shares: dict[str, float] = {}
    for suffix, masks in verdicts.items():
        flagged = [mask[pool.adversarial] for mask, pool in zip(masks, pools, strict=True)]
        found = every_attack_found(success, np.stack(flagged)) or Interval(*(math.nan,) * 3)
        shares[f"every_attack{suffix}"] = found.estimate
        # The interval holds for a threshold that does not depend on these images.
        if not suffix:
            shares |= {"every_attack_low": found.low, "every_attack_high": found.high}
    return shares


def _shares(pool: Pool, positive: np.ndarray) -> dict[str, float]:
    """Fractions of rows that are flagged; empty if there are no verdicts."""
    flagged = pool.table.column(_FLAGGED)
    if np.isnan(flagged).any():
        return {}
    found = share_interval(int(flagged[positive].sum()), int(positive.sum()))
    shares = {
        "found": found.estimate,
        "found_low": found.low,
        "found_high": found.high,
        "false_alarms": flagged[~pool.adversarial & ~pool.noisy].mean(),
    }
    if pool.noisy.any():
        shares["false_alarms_noisy"] = flagged[pool.noisy].mean()
    return {name: float(share) for name, share in shares.items()}
