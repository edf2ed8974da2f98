"""The sentinel of a detector: fitting, and verdicts of the combiner and the sentinel together."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from leery.calibration import Calibration
from leery.certify import Sentinel
from leery.detector._settings import Settings
from leery.detector._state import Fitted
from leery.errors import InputError
from leery.inputs import Images
from leery.models import fingerprint
from leery.training import FitParts

__all__ = [
    "SENTINEL",
    "Together",
    "check_same_images",
    "fitted_sentinel",
    "sentinel_of",
    "with_images_of",
]

SENTINEL = "sentinel"
"""Name of the sentinel's scores where they stand beside metrics."""


@dataclass(frozen=True)
class Together:
    """The verdicts of a combiner, or of a combiner and a sentinel.

    Attributes:
        p_value: float64 ``(N,)``, in (0, 1].
        flagged: bool ``(N,)``.
        by_sentinel: bool ``(N,)``; None without a sentinel.
    """

    p_value: np.ndarray
    flagged: np.ndarray
    by_sentinel: np.ndarray | None

    @classmethod
    def of(
        cls,
        score: np.ndarray,
        predicted: np.ndarray,
        calibration: Calibration,
        sentinel: tuple[np.ndarray, Calibration, float] | None,
    ) -> "Together":
        """Judge scores.

        Args:
            score: float64 ``(N,)``, the scores of the combiner.
            predicted: int64 ``(N,)``, the predicted classes.
            calibration: the combiner's.
            sentinel: the sentinel's scores, its calibration, and its share of the false alarms.
        """
        p_value = calibration.p_values(score, predicted)
        flagged = calibration.flagged(score, predicted)
        if sentinel is None:
            return cls(p_value, flagged, None)
        own, beside, share = sentinel
        by_sentinel = beside.flagged(own, predicted)
        # Bonferroni's inequality with weights.
        both = np.minimum(p_value / (1 - share), beside.p_values(own, predicted) / share)
        return cls(np.minimum(both, 1), flagged | by_sentinel, by_sentinel)


def sentinel_of(sentinel: Sentinel | None, model: nn.Module) -> Sentinel | None:
    """The sentinel; raises if it is of another classifier.

    Raises:
        InputError: when it is.
    """
    if (
        sentinel is not None
        and sentinel.model is not model
        and fingerprint(sentinel.model) != fingerprint(model)
    ):
        message = (
            f"expected a sentinel of the detector's classifier ({type(model).__name__}), got one "
            f"of another ({type(sentinel.model).__name__}); make it with the same classifier"
        )
        raise InputError(message)
    return sentinel


def fitted_sentinel(
    model: nn.Module,
    settings: Settings,
    fitted: Fitted,
    data: tuple[Images, Tensor | None],
    parts: FitParts | None,
) -> Sentinel | None:
    """A fitted copy of the sentinel in the settings, without its calibration; None for none.

    Raises:
        InputError: when it must be trained and the images cannot be read again, or when it was
            fitted on other images than the detector.
    """
    if settings.sentinel is None:
        return None
    own = copy.copy(settings.sentinel)
    own.model = model
    if own.fitted:
        check_same_images(own, fitted)
        return own.calibrated(None)
    images, labels = data
    if isinstance(images, Iterator):
        message = (
            "expected training data that can be read twice, which the sentinel needs, got an "
            "iterator; pass a tensor or a DataLoader"
        )
        raise InputError(message)
    return own.fit(images, labels, parts=parts)


def with_images_of(sentinel: Sentinel, fitted: Fitted) -> Fitted:
    """The fitted state, with the sentinel's training images among those that it has seen.

    They can be compared only if both round pixels to the same grid before they are hashed.
    """
    hashes, grid = sentinel.seen_
    if grid != fitted.grid or not len(fitted.seen):
        return fitted
    return replace(fitted, seen=torch.cat([fitted.seen, hashes]).unique())


def check_same_images(sentinel: Sentinel, fitted: Fitted) -> None:
    """Raise if a sentinel is for images of another shape, type or bounds than a detector.

    Raises:
        InputError: when it is.
    """
    own, known = sentinel.inputs_, fitted.inputs
    if (own.shape, own.dtype, own.bounds) != (known.shape, known.dtype, known.bounds):
        message = (
            f"expected a sentinel for images {known.shape} with bounds {known.bounds}, got one for "
            f"{own.shape} with bounds {own.bounds}; fit another one"
        )
        raise InputError(message)
