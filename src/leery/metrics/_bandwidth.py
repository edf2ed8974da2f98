"""Maximum-likelihood bandwidth of a Gaussian kernel density."""

import math
from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from leery.errors import InputError

__all__ = ["likeliest_bandwidth"]

_QUERIES = 200
_CELLS = 2**24
"""Maximum number of squared distances in memory: 128 MiB in float64."""


def likeliest_bandwidth(groups: Mapping[int, Tensor]) -> float:
    r"""The bandwidth that maximizes the leave-one-out log likelihood, shared by all groups.

    .. math:: \sum_c \sum_{x \in Q_c} \log \frac{1}{n_c - 1} \sum_{x_i \in X_c, x_i \ne x}
        \mathcal N(x; x_i, b^2 I)

    Q_c are up to 200 evenly spaced points of the group, fewer if the distances would not fit into
    memory. Points equal to the one left out are left out too; otherwise duplicates in the training
    data would draw the bandwidth to zero.

    Args:
        groups: float ``(n_c, D)`` of each group.

    Returns:
        b, in the units of the points, above 0.

    Raises:
        InputError: when no group has two different points.

    Source:
        Feinman et al. (2017), arXiv:1703.00410, section 5.2, which tunes by held-out likelihood
        on a grid. Departure: leave-one-out instead of folds, and a continuous search.
    """
    total = sum(len(points) for points in groups.values())
    queries = max(1, min(_QUERIES, _CELLS // max(1, total)))
    squares = [found for points in groups.values() for found in _squares(points, queries)]
    if not squares:
        message = (
            f"expected training features that differ within a class, got only equal ones in "
            f"{sorted(groups)}; pass a bandwidth as a number"
        )
        raise InputError(message)
    dimension = next(iter(groups.values())).shape[1]
    scale = math.sqrt(_mean([float(found.mean()) for found in squares]) / (2 * dimension))
    low, high = math.log(scale * 1e-3), math.log(scale * 1e2)
    best = minimize_scalar(
        lambda log: -_log_likelihood(squares, dimension, math.exp(log)),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return math.exp(float(best.x))


def _squares(points: Tensor, queries: int) -> list[Tensor]:
    """For some points, the squared distances to all points that differ from them."""
    rows = points.double()
    rows = rows - rows.mean(0)
    lengths = rows.square().sum(1)
    chosen = torch.linspace(0, len(rows) - 1, min(queries, len(rows))).round().long()
    distances = (lengths[chosen, None] + lengths - 2 * rows[chosen] @ rows.T).clamp_min(0)
    # Rounding error of the distance between equal points.
    tiny = 1e-12 * (lengths[chosen, None] + lengths)
    return [
        row[row > least] for row, least in zip(distances, tiny, strict=True) if (row > least).any()
    ]


def _log_likelihood(squares: Sequence[Tensor], dimension: int, bandwidth: float) -> float:
    """Mean log likelihood of the points that are left out."""
    normaliser = dimension / 2 * math.log(2 * math.pi * bandwidth**2)
    return (
        _mean(
            [
                float(torch.logsumexp(found / (-2 * bandwidth**2), 0)) - math.log(len(found))
                for found in squares
            ]
        )
        - normaliser
    )


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)
