"""Objectives of attackers who know the detector; they seek a wrong class that is not flagged."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from leery._checks import check_labels
from leery.attacks.adaptive._target import Excess, Excesses
from leery.models import extract_features, forward, last_hidden_layer, run_fast

__all__ = [
    "Accepted",
    "FalseAlarm",
    "FeatureMatching",
    "Joint",
    "Orthogonal",
    "Selective",
    "Targeted",
    "Weighted",
]

_ROUNDING = 1e-5
"""Lead of a wrong class that is no rounding error, as a fraction of the size of both logits."""

_BEHIND = 3.0
"""Offset that ranks iterates of one kind below all of the other, whose values are in -1..1."""

_PARALLEL = 1e-6
"""Length below which the part of a direction that is orthogonal to another is rounding noise."""

_LARGEST = 1e100
"""Largest size of a value that is scaled."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus that of the true class, ``(N,)``; above 0 if it is wrong."""
    other, true = _rivals(logits, labels)
    return other - true


def _rivals(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The largest other logit and that of the true class, each ``(N,)``."""
    own = labels.unsqueeze(1)
    return logits.scatter(1, own, -torch.inf).amax(1), logits.gather(1, own).squeeze(1)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-odds against the true class, nats, ``(N,)``.

    The gradient has the direction of that of the cross-entropy, but does not vanish where the
    classifier is sure.
    """
    own = labels.unsqueeze(1)
    others = logits.scatter(1, own, -torch.inf).logsumexp(1)
    return others - logits.gather(1, own).squeeze(1)


def _lack(logits: Tensor, labels: Tensor) -> Tensor:
    """What the largest other logit lacks to exceed that of the true class, beyond rounding errors.

    ``(N,)``; below 0 if the class is wrong.
    """
    other, true = _rivals(logits, labels)
    return _ROUNDING * (other.abs() + true.abs()).detach() - (other - true)


def _scaled(values: Tensor) -> Tensor:
    """Values between -1 and 1 in the same order, -1 for NaN, float64 ``(N,)``.

    Taken alone, the gradient of a scaled value has the direction of that of the value.
    """
    # An excess may be infinite, for which the function and its gradient would be no numbers.
    wide = values.double().nan_to_num(-_LARGEST).clamp(-_LARGEST, _LARGEST)
    return functional.softsign(wide)


def apart(images: Tensor) -> Tensor:
    """A view of the images through which gradients that are not numbers pass as 0.

    A score whose gradient is not a number must not take that of the classifier with it.
    """
    found = images.view_as(images)
    if found.requires_grad:
        found.register_hook(lambda gradient: gradient.nan_to_num(0.0))
    return found


def with_gradient(excess: Tensor, images: Tensor) -> Tensor:
    """An excess whose gradient is 0 if it does not depend on the images, as a constant score."""
    if excess.requires_grad or not images.requires_grad:
        return excess
    return excess + 0 * images.flatten(1).sum(1).to(excess)


def _unit(gradient: Tensor) -> Tensor:
    """Gradients scaled to length one, ``(N, ...)``; 0 stays 0."""
    # In float64, because squares of small float32 numbers underflow to 0.
    wide = gradient.double().flatten(1)
    return functional.normalize(wide, eps=1e-300).to(gradient.dtype).view_as(gradient)


class _Climb:
    """An objective of one term, whose best iterate is returned.

    Args:
        model: the classifier, in eval mode.
        excess: the detector's excess.
        weight: weight of the excess, at least 0.
    """

    chooses = True

    def __init__(self, model: nn.Module, excess: Excess, *, weight: float = 1.0) -> None:
        self.model, self.excess, self.weight = model, excess, weight

    def direction(self, gradients: Tensor) -> Tensor:
        """The gradient of the first term, ``(N, ...)``."""
        return gradients[0]

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        """Where the first term is larger, bool ``(N,)``."""
        return new > old

    def logits(self, images: Tensor, labels: Tensor) -> Tensor:
        """The classifier's logits, after a check of the labels."""
        logits = run_fast(self.model, apart(images))
        check_labels(labels, len(images), logits.shape[1])
        return logits

    def excess_of(self, images: Tensor) -> Tensor:
        """The excess of each image, with a gradient apart from that of the classifier."""
        return with_gradient(self.excess(apart(images)), images)

    def calm(self, images: Tensor) -> Tensor:
        """Minus the excess, scaled, float64 ``(N,)``."""
        return _scaled(-self.excess_of(images))

    def switched(
        self, logits: Tensor, labels: Tensor, goal: Tensor, calm: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The goal while the class is right, then the calm, and the other of the two."""
        wrong = _lack(logits, labels) < 0
        return torch.where(wrong, calm, goal - _BEHIND), torch.where(wrong, goal, calm)


class Selective(_Climb):
    """Climbs the log-odds against the class while it is right, then descends the score.

    Of the iterates with a wrong class, that with the lowest score is returned.

    Source:
        Bryniarski et al. (2021), arXiv:2106.15023, selective projected gradient descent.
    """

    def value(self, images: Tensor, labels: Tensor) -> Tensor:
        """The term to climb now, ``(N,)``."""
        return self.terms(images, labels)[0]

    def terms(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The term to climb now, and the other one."""
        logits = self.logits(images, labels)
        odds = _scaled(log_odds(logits, labels))
        return self.switched(logits, labels, odds, self.calm(images))


class Orthogonal(Selective):
    """As :class:`Selective`, but the direction leaves the other term unchanged to first order.

    In L-infinity the loop steps along the signs of this direction, which change the other term a
    little. Where both gradients are parallel, the direction is that of :class:`Selective`.

    Source:
        Bryniarski et al. (2021), arXiv:2106.15023, orthogonal projected gradient descent.
        Departure: equation 6 as printed subtracts from the wrong gradient.
    """

    def value(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Both terms, each ``(N,)``."""
        return self.terms(images, labels)

    def direction(self, gradients: Tensor) -> Tensor:
        """The gradient of the first term, without its component along that of the second."""
        climb, other = (_unit(gradient).flatten(1) for gradient in gradients)
        across = climb - (climb * other).sum(1, keepdim=True) * other
        parallel = across.norm(dim=1, keepdim=True) < _PARALLEL
        return torch.where(parallel, climb, across).view_as(gradients[0])

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        """Where the first term is larger, bool ``(N,)``."""
        return new[0] > old[0]


class Weighted(_Climb):
    """Climbs the capped margin of a wrong class and descends the excess of the score at once.

    A term counts until it is reached: a wrong class, an excess of 0. The direction is the sum of
    the directions of the gradients, those of excesses times the weight, so that the units of scores
    do not matter. There may be several excesses, ``(K, N)``, all of which are descended.

    Source:
        Carlini and Wagner (2017), arXiv:1705.07263: one loss for classifier and detector.
        Departure: directions instead of gradients are weighted.
    """

    def __init__(self, model: nn.Module, excess: Excess | Excesses, *, weight: float = 0.5) -> None:
        super().__init__(model, excess, weight=weight)

    def value(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The terms, each float64 ``(N,)``; all are 0 where the guard is evaded, else one is below.

        The first one is the lack of a wrong class; the others are minus the excesses.
        """
        lack = _lack(self.logits(images, labels), labels)
        excess = self.excess_of(images)
        each = excess.unsqueeze(0) if excess.ndim == 1 else excess
        return _scaled(-lack.relu()), *(_scaled(-part.relu()) for part in each)

    def direction(self, gradients: Tensor) -> Tensor:
        """The weighted sum of the directions of all gradients, ``(N, ...)``."""
        lack, *excesses = (_unit(gradient) for gradient in gradients)
        return lack + self.weight * torch.stack(excesses).sum(0)

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        """Where the sum of all terms is larger, bool ``(N,)``."""
        return new.sum(0) > old.sum(0)


class _Pursuit(_Climb):
    """Climbs a goal while the class is right, then descends the excess of the score.

    As in :class:`Selective`, one term counts at a time, and the iterate with a wrong class and the
    lowest score is returned. The direction also has a part of the other term: it is the sum of the
    directions of both gradients, the second one times the weight, so that the units of the score do
    not matter.

    Args:
        model: the classifier, in eval mode.
        excess: the detector's excess.
        weight: weight of the other term, at least 0.
    """

    def __init__(self, model: nn.Module, excess: Excess, *, weight: float = 0.5) -> None:
        super().__init__(model, excess, weight=weight)

    def goal(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What to climb, ``(N,)``, and the logits."""
        raise NotImplementedError

    def value(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The term to climb now and the other one, float64 ``(N,)``."""
        goal, logits = self.goal(images, labels)
        now, other = self.switched(logits, labels, _scaled(goal), self.calm(images))
        # While the class is right, a score that is low enough need not fall.
        return now, other.clamp_max(0)

    def direction(self, gradients: Tensor) -> Tensor:
        """The weighted sum of the directions of both gradients, ``(N, ...)``."""
        now, other = (_unit(gradient) for gradient in gradients)
        return now + self.weight * other

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        """Where the first term is larger, bool ``(N,)``."""
        return new[0] > old[0]


class Accepted(_Pursuit):
    r"""The log-probability of the likeliest wrong class; once a class is wrong, minus the excess.

    .. math:: \max_{k \ne y} \log p_k(x), \quad \text{then} \quad -(g(x) - t)

    Source:
        The confidence objective of Stutz, Hein, Schiele (2020), arXiv:1910.06259. Departure: the
        term of the detector, which takes part by its direction, so that its units do not matter.
    """

    def goal(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability, at most 0, ``(N,)``, and the logits."""
        logits = self.logits(images, labels)
        logs = logits.log_softmax(1)
        return logs.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1), logits


class Targeted(_Pursuit):
    """As :class:`Accepted`, for a chosen class.

    Args:
        model: the classifier, in eval mode.
        excess: the detector's excess.
        towards: the class to attack for each true class, int64 ``(classes,)``.
        weight: weight of the other term, at least 0.

    Source:
        Chen et al. (2023), "Stratified adversarial robustness with rejection": high-confidence
        attacks towards every other class.
    """

    def __init__(
        self, model: nn.Module, excess: Excess, *, towards: Tensor, weight: float = 0.5
    ) -> None:
        super().__init__(model, excess, weight=weight)
        self.towards = towards

    def goal(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability, at most 0, ``(N,)``, and the logits."""
        logits = self.logits(images, labels)
        target = self.towards.to(labels.device)[labels]
        return logits.log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1), logits


class FalseAlarm(_Climb):
    """The score's excess, for attackers who want correctly classified images to be flagged.

    Source:
        The attack on rejection by inconsistent labels of Chen et al. (2023).
    """

    def value(self, images: Tensor, labels: Tensor) -> Tensor:
        """The scaled excess, ``(N,)``; iterates with a wrong class are below all others."""
        wrong = margin(self.logits(images, labels), labels) > 0
        excess = _scaled(self.excess_of(images))
        return torch.where(wrong, excess - _BEHIND, excess)


class FeatureMatching(_Pursuit):
    """Drives the features towards those of a clean image that is classified otherwise.

    The goal is minus the squared distance to the nearest such image, as a fraction of the average
    squared length of the features; the score's excess takes part as in :class:`Accepted`.

    Args:
        model: the classifier, in eval mode.
        excess: the detector's excess.
        pool: clean images ``(M, ...)``, among which the nearest one is sought.
        layer: name of the layer, as for :func:`leery.models.extract_features`; by default the last
            hidden layer.
        weight: weight of the excess, at least 0.

    Source:
        Sabour et al. (2016), arXiv:1511.05122. Departure: the term of the detector.
    """

    def __init__(
        self,
        model: nn.Module,
        excess: Excess,
        *,
        pool: Tensor,
        layer: str | None = None,
        weight: float = 0.5,
    ) -> None:
        super().__init__(model, excess, weight=weight)
        self._layer = layer or last_hidden_layer(model, pool)
        features, logits = extract_features(model, pool, self._layer)
        self._scale = features.square().sum(1).mean().sqrt().clamp_min(1e-12)
        self._features, self._classes = features / self._scale, logits.argmax(1)

    def goal(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the scaled distance, ``(N,)``, and the logits."""
        logits, seen = forward(self.model, apart(images), [self._layer])
        own = seen[self._layer].flatten(1) / self._scale
        others = self._classes.to(labels.device) != labels.unsqueeze(1)
        squares = torch.cdist(own, self._features.to(own)).square()
        return -torch.where(others, squares, torch.inf).amin(1), logits


class Joint:
    """The sum of the log-odds of several classifiers; the attack knows no score.

    Args:
        model: the classifier, in eval mode.
        helpers: other networks of the same classes.
    """

    chooses = False

    def __init__(self, model: nn.Module, *, helpers: tuple[nn.Module, ...] = ()) -> None:
        self._models = (model, *helpers)

    def value(self, images: Tensor, labels: Tensor) -> Tensor:
        """The sum of the log-odds against the true class, nats, ``(N,)``."""
        each = [log_odds(run_fast(model, images), labels) for model in self._models]
        return torch.stack(each).sum(0)

    def direction(self, gradients: Tensor) -> Tensor:
        """The gradient, ``(N, ...)``."""
        return gradients[0]

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        """Where the sum is larger, bool ``(N,)``."""
        return new > old
