"""Uncertainty of a classifier about an input: functions of the pass probabilities.

All take ``probs`` of shape ``(passes, batch, classes)`` and compute in float64, because for
confident predictions a difference of entropies or squares cancels in float32.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from leery.errors import InputError
from leery.metrics._base import Metric
from leery.observation import Needs, Observation

__all__ = [
    "UNCERTAINTY",
    "PassUncertainty",
    "aleatoric",
    "bhattacharyya",
    "confidence",
    "epistemic",
    "mutual_information",
    "predictive_entropy",
    "scibilic",
    "variance",
]

_SUM_TOLERANCE = 1e-3

_BINS = 20
"""Number of bins of the histograms of the Bhattacharyya coefficient."""

_Formula = Callable[[Tensor], Tensor]

_FORMULAS: dict[str, _Formula] = {}
"""The functions below without input checks, for valid float64 probabilities."""


def _of_probabilities(formula: _Formula) -> _Formula:
    """Decorate a function of pass probabilities with input checks and conversion to float64."""
    _FORMULAS[formula.__name__] = formula

    @wraps(formula)
    def checked(probs: Tensor) -> Tensor:
        return formula(_checked(probs))

    return checked


@_of_probabilities
def confidence(probs: Tensor) -> Tensor:
    r"""The largest class probability of the mean prediction; smaller is more uncertain.

    .. math:: \max_c \bar p_c, \qquad \bar p = \frac1T \sum_t p_t

    Args:
        probs: float ``(passes, batch, classes)``, rows sum to 1.

    Returns:
        float64 ``(batch,)`` in [1 / classes, 1].

    Raises:
        InputError: when ``probs`` are not probabilities of that shape.

    Source:
        Tuna, Catak, Eskil (2020), eq. 5.

    Example:
        >>> confidence(torch.tensor([[[0.6, 0.4]], [[1.0, 0.0]]]))
        tensor([0.8000], dtype=torch.float64)
    """
    return probs.mean(0).amax(-1)


@_of_probabilities
def predictive_entropy(probs: Tensor) -> Tensor:
    r"""The entropy of the mean prediction; larger is more uncertain.

    .. math:: H(\bar p) = -\sum_c \bar p_c \log \bar p_c

    Args:
        probs: float ``(passes, batch, classes)``, rows sum to 1.

    Returns:
        float64 ``(batch,)``, nats, in [0, log classes].

    Raises:
        InputError: when ``probs`` are not probabilities of that shape.

    Notes:
        0 log 0 is 0.

    Source:
        Tuna, Catak, Eskil (2020), eq. 6.

    Example:
        >>> predictive_entropy(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.6931], dtype=torch.float64)
    """
    return _entropy(probs.mean(0))


@_of_probabilities
def variance(probs: Tensor) -> Tensor:
    r"""The variance of the passes, averaged over the classes; larger is more uncertain.

    .. math:: \frac1C \sum_c \frac1T \sum_t (p_{t,c} - \bar p_c)^2

    Args:
        probs: float ``(passes, batch, classes)``, rows sum to 1.

    Returns:
        float64 ``(batch,)`` in [0, 1/4]; 0 for a single pass.

    Raises:
        InputError: when ``probs`` are not probabilities of that shape.

    Source:
        Tuna, Catak, Eskil (2020), eq. 7 (divided by T, not T - 1) and the mean over classes that
        its text specifies.

    Example:
        >>> variance(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.2500], dtype=torch.float64)
    """
    # Torch's own variance takes six times as long along the first dimension.
    return (probs - probs.mean(0)).square().mean((0, -1))


@_of_probabilities
def mutual_information(probs: Tensor) -> Tensor:
    r"""Mutual information of the passes: entropy of the mean minus mean of the entropies.

    .. math:: H(\bar p) - \frac1T \sum_t H(p_t)

    Args:
        probs: float ``(passes, batch, classes)``, rows sum to 1.

    Returns:
        float64 ``(batch,)``, nats, in [0, log classes]; 0 for a single pass; larger is more
        uncertain.

    Raises:
        InputError: when ``probs`` are not probabilities of that shape.

    Notes:
        Rounding can make the difference slightly negative, by about 1e-16; it is clipped to 0.

    Source:
        Tuna, Catak, Eskil (2020), eq. 8, whose printed sign would add the two terms; the table in
        the paper (mutual information below entropy) shows that the difference was used.

    Example:
        >>> mutual_information(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.6931], dtype=torch.float64)
        >>> mutual_information(torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]]))
        tensor([0.], dtype=torch.float64)
    """
    return (_entropy(probs.mean(0)) - _entropy(probs).mean(0)).clamp_min(0)


@_of_probabilities
def aleatoric(probs: Tensor) -> Tensor:
    r"""The within-pass part of the predictive variance, averaged over the classes.

    .. math:: \frac1C \sum_c \frac1T \sum_t p_{t,c} (1 - p_{t,c})

    Args:
        probs: float ``(passes, batch, classes)``, rows sum to 1.

    Returns:
        float64 ``(batch,)`` in [0, 1/4]; larger is more uncertain.

    Raises:
        InputError: when ``probs`` are not probabilities of that shape.

    Source:
        Kwon et al. (2020), as used in the authors' later notebooks.

    Example:
        >>> aleatoric(torch.tensor([[[0.5, 0.5]]]))
        tensor([0.2500], dtype=torch.float64)
    """
    return (probs * (1 - probs)).mean((0, -1))


@_of_probabilities
def epistemic(probs: Tensor) -> Tensor:
    """The between-pass part of the predictive variance; an alias of :func:`variance`.

    Args:
        probs: float ``(passes, batch, classes)``, rows sum to 1.

    Returns:
        float64 ``(batch,)`` in [0, 1/4]; larger is more uncertain.

    Raises:
        InputError: when ``probs`` are not probabilities of that shape.

    Source:
        Kwon et al. (2020), as used in the authors' later notebooks.

    Example:
        >>> epistemic(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.2500], dtype=torch.float64)
    """
    return variance(probs)


@_of_probabilities
def scibilic(probs: Tensor) -> Tensor:
    r"""Ratio of epistemic to aleatoric uncertainty; larger is more uncertain.

    .. math:: \mathrm{epistemic} / \mathrm{aleatoric}

    Args:
        probs: float ``(passes, batch, classes)``, rows sum to 1.

    Returns:
        float64 ``(batch,)``, at least 0, infinite when one-hot passes disagree.

    Raises:
        InputError: when ``probs`` are not probabilities of that shape.

    Notes:
        If both parts are exactly 0 (every pass gives the same one-hot row), the ratio is undefined
        and 0 by convention, because nothing is uncertain.

    Source:
        The authors' later notebooks.

    Example:
        >>> scibilic(torch.tensor([[[0.8, 0.2]], [[0.6, 0.4]]]))
        tensor([0.0500], dtype=torch.float64)
    """
    between, within = epistemic(probs), aleatoric(probs)
    undefined = (between == 0) & (within == 0)
    # Avoid 0 / 0, whose derivative would be NaN.
    ratio = between / torch.where(undefined, torch.ones_like(within), within)
    return torch.where(undefined, torch.zeros_like(between), ratio)


@_of_probabilities
def bhattacharyya(probs: Tensor) -> Tensor:
    r"""Overlap of the passes' probabilities of the two most probable classes.

    .. math:: \sum_b \sqrt{h_{1,b} h_{2,b}}

    where h are histograms, over the passes, of the probabilities of the two classes that are most
    probable in the mean prediction. A histogram has 20 equal bins in [0, 1] and sums to 1.

    Args:
        probs: float ``(passes, batch, classes)``, rows sum to 1.

    Returns:
        float64 ``(batch,)`` in [0, 1]; larger is more uncertain.

    Raises:
        InputError: when ``probs`` are not probabilities of that shape.

    Notes:
        The histograms have no useful gradient. With a single class the overlap is 0.

    Source:
        Combalia et al. (2020), "Uncertainty estimation in deep neural networks for dermoscopic
        image classification"; the number of bins is not stated there.

    Example:
        >>> bhattacharyya(torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]]))
        tensor([0.], dtype=torch.float64)
        >>> bhattacharyya(torch.tensor([[[0.51, 0.49]], [[0.49, 0.51]]]))
        tensor([1.], dtype=torch.float64)
    """
    first, second = _two_likeliest(probs)
    counts = [
        torch.nn.functional.one_hot(bins, _BINS).double().mean(0)
        for bins in ((part * _BINS).long().clamp_max(_BINS - 1) for part in (first, second))
    ]
    return (counts[0] * counts[1]).sqrt().sum(-1)


def _overlap_of_normals(probs: Tensor) -> Tensor:
    """A differentiable :func:`bhattacharyya`, with normal distributions in place of histograms.

    The variance of a uniform distribution in one bin is added to the variance of each.
    """
    (mean, square), (other, other_square) = (
        (part.mean(0), part.var(0, correction=0) + 1 / (12 * _BINS**2))
        for part in _two_likeliest(probs)
    )
    total = square + other_square
    scale = (2 * (square * other_square).sqrt() / total).sqrt()
    return scale * torch.exp(-((mean - other) ** 2) / (4 * total))


def _two_likeliest(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities ``(passes, batch)`` of the two classes with the largest mean."""
    if probs.shape[-1] < 2:  # noqa: PLR2004 - classes to compare
        return probs[..., 0], torch.zeros_like(probs[..., 0])
    order = probs.mean(0).topk(2, dim=-1).indices
    first, second = (
        probs.gather(-1, order[:, [place]].expand(len(probs), -1, -1)).squeeze(-1)
        for place in (0, 1)
    )
    return first, second


UNCERTAINTY: Mapping[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        variance,
        predictive_entropy,
        mutual_information,
        confidence,
        aleatoric,
        epistemic,
        scibilic,
        bhattacharyya,
    )
}
"""Functions of the pass probabilities by name."""


class PassUncertainty(Metric):
    """A function of the pass probabilities as a metric.

    Args:
        function: a name from :data:`UNCERTAINTY`.

    Raises:
        InputError: when there is no such function.
    """

    family = "uncertainty"
    needs = Needs(passes=True)

    def __init__(self, function: str) -> None:
        super().__init__()
        if function not in UNCERTAINTY:
            names = ", ".join(UNCERTAINTY)
            message = f"expected one of the functions {names}, got {function!r}; choose one"
            raise InputError(message)
        self.name = function
        self.direction = "smaller" if function == "confidence" else "larger"
        self.differentiable = function != "bhattacharyya"

    def forward(self, seen: Observation) -> Tensor:
        """The function of the pass probabilities, float64 ``(N,)``."""
        return _FORMULAS[self.name](seen.probs.double())

    def smooth(self, seen: Observation) -> Tensor:
        """The same function; of the Bhattacharyya coefficient a differentiable one."""
        if self.differentiable:
            return self.forward(seen)
        return _overlap_of_normals(seen.probs.double())

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {"function": self.name}


def _entropy(probs: Tensor) -> Tensor:
    """Entropy of the last dimension in nats, with 0 log 0 = 0."""
    if probs.requires_grad:
        # The derivative of p log p is infinite at 0; it is replaced by 0 there.
        probs = probs.clamp_min(torch.finfo(probs.dtype).tiny)
    terms: Tensor = torch.special.entr(probs)
    return terms.sum(-1)


def _checked(probs: Tensor) -> Tensor:
    """``probs`` in float64; raises if they are not class probabilities of passes."""
    if not isinstance(probs, Tensor) or not probs.is_floating_point():
        kind = probs.dtype if isinstance(probs, Tensor) else type(probs).__name__
        message = f"expected probs as a floating-point torch.Tensor, got {kind}; convert them"
        raise InputError(message)
    if probs.ndim != 3 or probs.shape[0] == 0 or probs.shape[2] == 0:  # noqa: PLR2004
        message = (
            f"expected probs (passes, batch, classes), got shape {tuple(probs.shape)}; "
            "stack the passes in the first dimension"
        )
        raise InputError(message)
    probs = probs.double()
    off = (probs.sum(-1) - 1).abs()
    # Stated for valid input, because NaN fails every comparison.
    right = probs.numel() == 0 or (probs.min() >= 0) & (off.max() <= _SUM_TOLERANCE)
    if not right:
        message = (
            "expected probabilities (at least 0, rows summing to 1), got "
            f"elements in {float(probs.min()):g}..{float(probs.max()):g} and rows off by up to "
            f"{float(off.max()):g}; apply softmax to logits first"
        )
        raise InputError(message)
    return probs
