"""Baselines are their metric, turned, and stand beside a detector in an evaluation."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from leery import Detector, names
from leery.attacks import PGD, AdaptedAttack, Attack
from leery.baselines import BASELINES, SingleMetric
from leery.errors import InputError, NotFittedError
from leery.evaluation import evaluate
from leery.metrics import energy, max_softmax
from leery.observation import Scorer

Batch = tuple[Tensor, Tensor]


def test_the_score_is_the_metric_and_large_where_it_is_suspicious(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    images = digits[0][:30]
    with torch.no_grad():
        logits = digit_net(images)
    for name, function, sign in (("max_softmax", max_softmax, -1), ("energy", energy, 1)):
        baseline = BASELINES[name](digit_net).fit(training_digits)
        assert isinstance(baseline, Scorer)
        assert np.allclose(baseline.score(images), sign * function(logits).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", names.BASELINES)
def test_the_differentiable_score_is_the_score_with_a_gradient(
    name: str, digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    baseline = BASELINES[name](digit_net).fit(training_digits)
    images = digits[0][:10].clone().requires_grad_()
    score = baseline.differentiable_score(images)
    assert baseline.differentiable
    assert np.allclose(score.detach().numpy(), baseline.score(digits[0][:10]), rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().sum()) > 0


def test_before_the_fit_there_is_no_score(digit_net: nn.Module, digits: Batch) -> None:
    with pytest.raises(NotFittedError):
        SingleMetric(digit_net, "max_softmax").score(digits[0][:3])


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_shows_them_on_the_same_images(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    images, labels = (part[:200] for part in digits)
    detector = Detector(digit_net, metrics=["noise_consistency"])
    detector.fit(*(part[:500] for part in training_digits)).fit_combiner(digits[0][300:400])
    rivals = {"max_softmax": SingleMetric(digit_net, "max_softmax").fit(training_digits)}
    attacks: dict[str, Attack] = {"pgd": PGD(0.3), "deepfool": AdaptedAttack("deepfool")}
    found = evaluate(detector, images, labels, attacks=attacks, baselines=rivals)
    table = found[found.positives == "all"].set_index(["attack", "detector"])
    assert set(found.detector) == {"detector", "max_softmax"}
    for attack in attacks:
        one, other = (table.loc[(attack, name)] for name in ("detector", "max_softmax"))
        assert (one.n_adversarial, one.success) == (other.n_adversarial, other.success)
    # A confident attack passes the softmax and not the noise; a minimal one the other way round.
    assert table.auc["pgd", "detector"] > 0.95 > table.auc["pgd", "max_softmax"]
    assert table.auc["deepfool", "max_softmax"] > 0.95


def test_images_that_the_detector_learned_from_are_known_and_not_evaluated_on(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    images, labels = (part[:100] for part in training_digits)
    detector = Detector(digit_net, metrics=["log_margin"]).fit(images, labels)
    detector.fit_combiner(digits[0][:60])
    mixed = torch.cat([images[:5], digits[0][55:65]])
    assert detector.has_seen(mixed).tolist() == [True] * 10 + [False] * 5
    truth = torch.cat([labels[:5], digits[1][55:65]])
    attacks: dict[str, Attack] = {"pgd": PGD(0.3)}
    with pytest.raises(InputError, match="not learned from, got 10 of 15 .* evaluate on others"):
        evaluate(detector, mixed, truth, attacks=attacks)
    unnamed: list[Attack] = [PGD(0.3)]
    with pytest.raises(InputError, match="attacks by name, got list; pass a dictionary"):
        evaluate(detector, mixed, truth, attacks=unnamed)  # type: ignore[arg-type]  # refused
    small = DataLoader(TensorDataset(mixed, truth), 3)
    with pytest.raises(InputError, match="got 6 of 6 that the fit or the combiner has seen"):
        evaluate(detector, small, attacks=attacks)
    with pytest.raises(InputError, match=r"got \(15, 1, 9, 28\)"):
        detector.has_seen(mixed[:, :, :9])
    # A few are let pass.
    few = torch.cat([images[:3], digits[0][60:70]])
    evaluate(detector, few, torch.cat([labels[:3], digits[1][60:70]]), attacks=attacks)
