"""Protocols that compute scores for evaluation: in-sample, as in the paper, or held out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from sklearn.model_selection import GroupKFold

from leery.combiners import Facts, LogisticCombiner
from leery.errors import InputError
from leery.evaluation._pool import Pool

__all__ = ["FOLDS", "PROTOCOLS", "Protocol", "cross_fit", "held_out_scores", "in_sample_scores"]

Protocol = Literal["paper", "held-out"]

FOLDS = 5
"""Number of folds of the held-out protocol."""


def in_sample_scores(pool: Pool, names: Sequence[str], _seed: int = 0) -> np.ndarray:
    """The paper's protocol: the combiner is fitted and evaluated on the same rows.

    Args:
        pool: the measured images and their versions.
        names: the metrics to combine.

    Returns:
        float64 ``(N,)``, log odds; larger is more suspicious. They are optimistically biased.
    """
    everything = np.arange(len(pool.adversarial))
    return scores_of(_fitted(pool, names, everything), pool, names, everything)


def held_out_scores(
    pool: Pool, names: Sequence[str], seed: int = 0, *, folds: int = FOLDS
) -> np.ndarray:
    """Held-out protocol: a row is scored by a combiner not fitted on its source image.

    An image and its versions are always in the same fold.

    Args:
        pool: the measured images and their versions.
        names: the metrics to combine.
        seed: random seed of the assignment of source images to folds.
        folds: number of folds.

    Returns:
        float64 ``(N,)``, log odds; larger is more adversarial.

    Raises:
        InputError: when there are fewer source images than folds.
    """
    scores = np.empty(len(pool.adversarial))
    for combiner, judge in cross_fit(pool, names, seed, folds=folds):
        scores[judge] = scores_of(combiner, pool, names, judge)
    return scores


def cross_fit(
    pool: Pool, names: Sequence[str], seed: int = 0, *, folds: int = FOLDS
) -> Iterator[tuple[LogisticCombiner, np.ndarray]]:
    """The combiners of the held-out protocol, each with the rows it was not fitted on.

    Args:
        pool: the measured images and their versions.
        names: the metrics to combine.
        seed: random seed of the assignment of source images to folds.
        folds: number of folds.

    Yields:
        A combiner, and the int64 indices of its held-out rows.

    Raises:
        InputError: when there are fewer source images than folds.
    """
    count = len(np.unique(pool.source))
    if count < folds:
        message = (
            f"expected at least {folds} correctly classified images for {folds} folds, got "
            f"{count}; take more images"
        )
        raise InputError(message)
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    for fit, judge in splitter.split(pool.source, groups=pool.source):
        yield _fitted(pool, names, fit), judge


def scores_of(
    combiner: LogisticCombiner, pool: Pool, names: Sequence[str], rows: np.ndarray
) -> np.ndarray:
    """The log odds of some rows, float64 ``(n,)``."""
    values = torch.from_numpy(pool.values(names)[rows])
    found: np.ndarray = combiner(values, torch.from_numpy(pool.table.predicted[rows])).numpy()
    return found


def _fitted(pool: Pool, names: Sequence[str], rows: np.ndarray) -> LogisticCombiner:
    """Fit a combiner on some rows."""
    # Neither family nor direction matters to a regression.
    combiner = LogisticCombiner([Facts(name, "", "both") for name in names])
    return combiner.fit(
        pool.values(names)[rows], pool.table.predicted[rows], adversarial=pool.adversarial[rows]
    )


PROTOCOLS: Mapping[Protocol, Callable[[Pool, Sequence[str], int], np.ndarray]] = {
    "paper": in_sample_scores,
    "held-out": held_out_scores,
}
"""The protocols by name: functions of a pool, the names of metrics and a seed."""
