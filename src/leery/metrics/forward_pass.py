"""The cheapest metrics: functions of the logits of one forward pass with dropout off.

They are hard to beat on minimal attacks, which stop as soon as the label changes; high-confidence
attacks evade them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from leery.errors import InputError
from leery.metrics._base import Metric
from leery.observation import Observation

__all__ = ["FORWARD", "ForwardPass", "energy", "log_margin", "margin", "max_softmax"]


def max_softmax(logits: Tensor) -> Tensor:
    r"""The largest class probability; smaller is more suspicious.

    .. math:: \max_c \frac{e^{z_c}}{\sum_j e^{z_j}}

    Args:
        logits: float ``(N, classes)``.

    Returns:
        float64 ``(N,)`` in [1 / classes, 1].

    Source:
        Hendrycks and Gimpel (2017), arXiv:1610.02136.

    Example:
        >>> import torch
        >>> max_softmax(torch.tensor([[0.0, 0.0]]))
        tensor([0.5000], dtype=torch.float64)
    """
    return logits.double().softmax(1).amax(1)


def margin(logits: Tensor) -> Tensor:
    r"""The largest logit minus the second largest; smaller is more suspicious.

    .. math:: z_{(1)} - z_{(2)}

    Args:
        logits: float ``(N, classes)``, at least two classes.

    Returns:
        float64 ``(N,)``, at least 0.

    Source:
        The objective of Carlini and Wagner (2017), arXiv:1608.04644.

    Example:
        >>> import torch
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([1.], dtype=torch.float64)
    """
    first, second = logits.double().topk(2, dim=1).values.unbind(1)
    return first - second


def log_margin(logits: Tensor) -> Tensor:
    r"""The log of the margin; smaller is more suspicious.

    .. math:: \log \max(z_{(1)} - z_{(2)}, \varepsilon \max(|z_{(1)}|, 1))

    with the machine epsilon of the logits' type.

    The ranking of images is that of :func:`margin`, but the logarithm suits an exponential tail:
    the fraction of clean images with a margin below m is proportional to m, which is exponential in
    log m. Attacks that stop at the decision boundary have smaller margins than nearly all clean
    images.

    Args:
        logits: float ``(N, classes)``, at least two classes.

    Returns:
        float64 ``(N,)``, finite. At a tie, or within rounding error of one, the gradient is 0.

    Source:
        :func:`margin`.

    Example:
        >>> import torch
        >>> log_margin(torch.tensor([[3.0, 1.0, 2.0], [1.0, 4.0, 1.0]]))
        tensor([0.0000, 1.0986], dtype=torch.float64)
    """
    epsilon = torch.finfo(logits.dtype).eps
    least = epsilon * logits.detach().double().amax(1).abs().clamp_min(1)
    return margin(logits).clamp_max(torch.finfo(torch.float64).max).maximum(least).log()


def energy(logits: Tensor) -> Tensor:
    r"""The free energy of the logits; larger is more suspicious.

    .. math:: -\log \sum_c e^{z_c}

    Args:
        logits: float ``(N, classes)``.

    Returns:
        float64 ``(N,)``, in the units of the logits.

    Source:
        Liu et al. (2020), arXiv:2010.03759, at temperature 1.

    Example:
        >>> import torch
        >>> energy(torch.tensor([[0.0, 0.0]]))
        tensor([-0.6931], dtype=torch.float64)
    """
    return -logits.double().logsumexp(1)


FORWARD: Mapping[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function for function in (max_softmax, margin, log_margin, energy)
}
"""Functions of the logits by name."""


class ForwardPass(Metric):
    """A function of the logits as a metric, at no extra cost.

    Args:
        function: a name from :data:`FORWARD`.

    Raises:
        InputError: when there is no such function.
    """

    family = "forward pass"

    def __init__(self, function: str) -> None:
        super().__init__()
        if function not in FORWARD:
            names = ", ".join(FORWARD)
            message = f"expected one of the functions {names}, got {function!r}; choose one"
            raise InputError(message)
        self.name = function
        self.direction = "larger" if function == "energy" else "smaller"

    def forward(self, seen: Observation) -> Tensor:
        """The function of the logits, float64 ``(N,)``."""
        return FORWARD[self.name](seen.logits)

    def options(self) -> dict[str, Any]:
        """Constructor arguments of this metric."""
        return {"function": self.name}
