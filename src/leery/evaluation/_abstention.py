"""Risk-coverage curves of a classifier that abstains when it is uncertain."""

from dataclasses import dataclass

import numpy as np

from leery.errors import InputError

__all__ = ["Abstention", "abstention"]


@dataclass(frozen=True)
class Abstention:
    """A risk-coverage curve, as counts.

    Attributes:
        kept: int64 ``(K,)``, number of images that the classifier answers: 1 to N.
        wrong: int64 ``(K,)``, number of these answers that are wrong.
    """

    kept: np.ndarray
    wrong: np.ndarray

    @property
    def coverage(self) -> np.ndarray:
        """Fraction of images that the classifier answers, float64 ``(K,)``, in (0, 1]."""
        coverage: np.ndarray = self.kept / self.kept.max()
        return coverage

    @property
    def risk(self) -> np.ndarray:
        """Fraction of answers that are wrong, float64 ``(K,)``, in [0, 1]."""
        risk: np.ndarray = self.wrong / self.kept
        return risk


def abstention(wrong: np.ndarray, doubt: np.ndarray) -> Abstention:
    """Risk-coverage curve of answering images in order of increasing doubt.

    Images of equal doubt are answered together: the curve has a point only where the doubt changes,
    and one where every image is answered.

    Args:
        wrong: bool ``(N,)``, whether the classifier's answer is wrong.
        doubt: float ``(N,)``, uncertainty of the answer; larger is more uncertain.

    Raises:
        InputError: when there is no image or the doubt is not finite.

    Source:
        El-Yaniv and Wiener (2010), "On the foundations of noise-free selective classification".

    Example:
        >>> abstention(np.array([False, True]), np.array([0.1, 0.9])).risk
        array([0. , 0.5])
    """
    if len(wrong) == 0 or wrong.shape != doubt.shape or not np.isfinite(doubt).all():
        message = (
            f"expected a finite uncertainty for each image, got {doubt.shape} for {wrong.shape}, "
            f"{int((~np.isfinite(doubt)).sum())} of them not finite; correct them"
        )
        raise InputError(message)
    order = np.argsort(doubt, kind="stable")
    last = np.append(np.diff(doubt[order]) > 0, True)
    kept = np.flatnonzero(last) + 1
    return Abstention(kept, np.cumsum(wrong[order])[last])
