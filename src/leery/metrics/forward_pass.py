"""What the logits of one plain forward pass say: the cheapest metrics, dropout off.

On minimal attacks, which stop as soon as the label changes, they are hard to beat; confident
attacks pass them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from leery.errors import InputError
from leery.metrics._base import Metric
from leery.observation import Observation

__all__ = ["FORWARD", "ForwardPass", "energy", "log_margin", "margin", "max_softmax"]

_SMALLEST = 1e-12
"""The margin of a tie, so that its log is finite."""


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

    .. math:: \log \max(z_{(1)} - z_{(2)}, 10^{-12})

    It orders images as :func:`margin` does, and tells more by a p-value with an exponential tail:
    margins of clean images have some density at 0, so that the share of them below m falls in
    proportion to m, and in the log exponentially. Attacks that stop at the decision boundary have
    margins that no clean image has.

    Args:
        logits: float ``(N, classes)``, at least two classes.

    Returns:
        float64 ``(N,)``, at least log 1e-12; a tie has that.

    Source:
        :func:`margin`.

    Example:
        >>> import torch
        >>> log_margin(torch.tensor([[3.0, 1.0, 2.0], [1.0, 4.0, 1.0]]))
        tensor([0.0000, 1.0986], dtype=torch.float64)
    """
    return margin(logits).clamp_min(_SMALLEST).log()


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
"""The functions of the logits by name."""


class ForwardPass(Metric):
    """A function of the logits as a metric of a detector; it costs nothing.

    Args:
        function: a name out of :data:`FORWARD`.

    Raises:
        InputError: when there is no such function.
    """

    family = "forward pass"

    def __init__(self, function: str) -> None:
        super().__init__()
        if function not in FORWARD:
            message = f"expected a function out of {', '.join(FORWARD)}, got {function!r}"
            raise InputError(message)
        self.name = function
        self.direction = "larger" if function == "energy" else "smaller"

    def forward(self, seen: Observation) -> Tensor:
        """The function of the logits, float64 ``(N,)``."""
        return FORWARD[self.name](seen.logits)

    def options(self) -> dict[str, Any]:
        """The arguments that make another such metric."""
        return {"function": self.name}
