"""Dispersion of hidden units under dropout, and its relation to that of the output.

Both metrics need a classifier with dropout before its last hidden layer.
"""

import torch
from torch import Tensor

from leery.metrics._base import Metric
from leery.observation import HEAD, Needs, Observation

__all__ = ["LogitFeatureShift", "UnitDispersion"]

_TINY = 1e-12


class UnitDispersion(Metric):
    r"""Standard deviation of the hidden units over the passes, relative to their mean.

    .. math:: \frac{\| \mathrm{std}_t(h_t) \|}{\| \mathrm{mean}_t(h_t) \|}

    Source:
        Feinman et al. (2017), arXiv:1703.00410, measure the spread of the output; this metric
        measures that of the last hidden layer.
    """

    name = "unit_dispersion"
    family = "uncertainty"
    direction = "larger"
    by_class = True
    needs = Needs(pass_layers=(HEAD,))

    def forward(self, seen: Observation) -> Tensor:
        """The relative spread of each image, float64 ``(N,)``; 0 for a single pass."""
        units = seen.pass_layers[HEAD].flatten(2).double()
        spread, mean = torch.std_mean(units, dim=0, correction=0)
        relative: Tensor = spread.norm(dim=1) / mean.norm(dim=1).clamp_min(_TINY)
        return relative


class LogitFeatureShift(Metric):
    r"""Mean log ratio of the shift of the output to the shift of the hidden units under dropout.

    .. math:: \frac1T \sum_t \bigl[ \log \| z_t - z \| - \log \| h_t - h \| \bigr]

    where z are log probabilities minus their mean, which are logits up to a constant.

    Source:
        The idea that attacks cause large shifts of the logits by small shifts of features; the
        masks are those of Monte-Carlo dropout.
    """

    name = "logit_feature_shift"
    family = "uncertainty"
    direction = "larger"
    by_class = True
    needs = Needs(passes=True, layers=(HEAD,), pass_layers=(HEAD,))

    def forward(self, seen: Observation) -> Tensor:
        """The mean log ratio of each image, float64 ``(N,)``."""
        logits = _centred(seen.logits.double().log_softmax(1))
        smallest = torch.finfo(seen.probs.dtype).tiny
        passes = _centred(seen.probs.clamp_min(smallest).double().log())
        output = (passes - logits).norm(dim=2)
        units = seen.pass_layers[HEAD].flatten(2).double()
        moved = (units - seen.layers[HEAD].flatten(1).double()).norm(dim=2)
        ratio: Tensor = (output.clamp_min(_TINY).log() - moved.clamp_min(_TINY).log()).mean(0)
        return ratio


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)
