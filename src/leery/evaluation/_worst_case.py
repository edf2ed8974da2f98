"""The worst case over several attacks on the same images."""

import numpy as np

from leery.evaluation._intervals import Interval, share_interval

__all__ = ["every_attack_found"]


def every_attack_found(success: np.ndarray, flagged: np.ndarray) -> Interval | None:
    """Share of images on which every successful attack is flagged, with its interval.

    An attacker who can try all the attacks needs only one that succeeds and is not flagged. Images
    on which no attack succeeds do not count.

    Args:
        success: bool ``(attacks, N)``, True where an attack on an image changes the class.
        flagged: bool ``(attacks, N)``, True where the adversarial image is flagged.

    Returns:
        The share in [0, 1] with its 95 % confidence interval; None if no attack succeeds.

    Source:
        Granese et al. (2022), "MEAD", arXiv:2206.15415.
    """
    attacked = success.any(0)
    if not attacked.any():
        return None
    missed = (success & ~flagged).any(0)
    return share_interval(int((attacked & ~missed).sum()), int(attacked.sum()))
