"""Log odds between classes, in float64."""

import torch
from torch import Tensor

__all__ = ["largest_other", "log_odds_against"]


def log_odds_against(logits: Tensor, classes: Tensor) -> Tensor:
    r"""Log odds, computed from logits, that a class is wrong.

    .. math:: \log \sum_{j \ne c} e^{z_j} - z_c

    Args:
        logits: float ``(N, classes)``.
        classes: int64 ``(N,)``.

    Returns:
        float64 ``(N,)``; 0 where the class has probability 1/2.
    """
    wide = logits.double()
    return _without(wide, classes).logsumexp(1) - _of(wide, classes)


def largest_other(differences: Tensor, classes: Tensor) -> Tensor:
    """The largest element ``(N,)`` of each row ``(N, classes)``, leaving out that of its class."""
    return _without(differences, classes).amax(1)


def _of(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes.unsqueeze(1)).squeeze(1)


def _without(values: Tensor, classes: Tensor) -> Tensor:
    own = torch.nn.functional.one_hot(classes, values.shape[1]).bool()
    return values.masked_fill(own, -torch.inf)
