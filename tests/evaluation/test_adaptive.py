"""What an attacker sees of a detector."""

import numpy as np
import pytest
import torch
from torch import nn

from leery import Detector, NotFittedError
from leery.attacks.adaptive import adaptive_attacks, worst_case
from leery.certify import pretrained_sentinel
from leery.errors import InputError
from leery.evaluation import evaluate_adaptive, robust_error, target_of
from tests.conftest import Batch


@pytest.fixture(params=[False, True], ids=["metrics", "with a sentinel"])
def detector(
    request: pytest.FixtureRequest, digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> Detector:
    sentinel = pretrained_sentinel("mnist", digit_net) if request.param else None
    made = Detector(digit_net, metrics=("max_softmax", "margin"), sentinel=sentinel)
    made.fit(training_digits[0][:1000], training_digits[1][:1000])
    return made.calibrate(digits[0][:1000], digits[1][:1000], fpr=0.05, harmless={})


def test_the_excess_is_above_0_exactly_for_flagged_images(
    detector: Detector, digits: Batch
) -> None:
    images = digits[0][1000:1500]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    images = torch.cat([images, (0.5 * images + 0.5 * noise)])
    target, verdicts = target_of(detector), detector.judge(images)
    classes, excess = target.judge(images)
    assert np.array_equal(classes.numpy(), verdicts.predicted)
    assert (excess > 0).tolist() == np.asarray(verdicts.adversarial).tolist()
    assert 0.05 < float((excess > 0).double().mean()) < 0.95
    seen = images.clone().requires_grad_()
    found = target.excess(seen)
    assert torch.allclose(found.detach(), excess, atol=1e-3)
    (gradient,) = torch.autograd.grad(found.sum(), seen)
    assert bool(gradient.isfinite().all())
    assert int((gradient.flatten(1).norm(dim=1) > 0).sum()) > 900


def test_an_attacker_who_knows_the_metrics_evades_them(detector: Detector, digits: Batch) -> None:
    images, labels = digits[0][1000:1030], digits[1][1000:1030]
    target = target_of(detector)
    attacks = adaptive_attacks(target, 0.3, classes=10, steps=60)
    found = worst_case(target, {"selective": attacks["selective"]}, images, labels)
    verdicts = detector.judge(found.images)
    evaded = (verdicts.predicted != labels.numpy()) & ~np.asarray(verdicts.adversarial)
    assert np.array_equal(evaded, found.rows.evaded)
    if detector.sentinel_ is None:
        assert evaded.mean() >= 0.95
    else:
        # What is certified cannot be evaded by anyone.
        certified = detector.sentinel_.certify(images, labels, epsilon=0.3)
        assert certified.mean() > 0.5
        assert not (evaded & certified).any()
    assert len(target.helpers) == (detector.sentinel_ is not None)


def test_a_detector_that_is_not_calibrated_has_no_excess(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    made = Detector(digit_net, metrics=("max_softmax",)).fit(
        training_digits[0][:100], training_digits[1][:100]
    )
    with pytest.raises(NotFittedError, match="calibrate"):
        target_of(made)
    with pytest.raises(NotFittedError, match="calibrate"):
        made.differentiable_excess(digits[0][:2])


def test_an_attacker_is_evaluated(detector: Detector, digits: Batch) -> None:
    images, labels = digits[0][1000:1100], digits[1][1000:1100]
    parts = list(zip(images.split(30), labels.split(30), strict=True))
    settings = {"epsilon": 0.15, "steps": 20, "limit": 25}
    whole = evaluate_adaptive(detector, images, labels, **settings)  # type: ignore[arg-type]
    assert evaluate_adaptive(detector, parts, **settings) == whole  # type: ignore[arg-type]
    assert (whole.norm, whole.epsilon, whole.steps, whole.restarts) == ("linf", 0.15, 20, 1)
    assert whole.images == 25
    assert sum(whole.by.values()) == round(25 * whole.evaded.estimate)
    shares = [0.0, *whole.found_after.values()]
    assert shares == sorted(shares)
    assert shares[-1] == whole.evaded.estimate
    assert whole.signs.transfer <= 0.2
    assert (whole.certified is None) == (detector.sentinel_ is None)
    if whole.certified is not None:
        assert whole.certified.estimate <= 1 - whole.evaded.estimate


@pytest.mark.parametrize("detector", [False], indirect=True, ids=["metrics"])
def test_in_l2_more_is_found_in_a_larger_ball(detector: Detector, digits: Batch) -> None:
    images, labels = digits[0][1000:1040], digits[1][1000:1040]
    small, large = (
        evaluate_adaptive(detector, images, labels, epsilon=epsilon, norm="l2", steps=20, limit=15)
        for epsilon in (0.3, 3.0)
    )
    assert small.norm == "l2"
    assert small.certified is None
    assert small.evaded.estimate < large.evaded.estimate


def test_a_single_image_can_be_attacked(detector: Detector, digits: Batch) -> None:
    found = evaluate_adaptive(
        detector, digits[0][1000:1001], digits[1][1000:1001], epsilon=0.3, steps=20
    )
    assert found.images == 1
    assert sum(found.by.values()) == found.evaded.estimate


def test_images_are_needed_that_the_classifier_gets_right_and_the_detector_has_not_seen(
    detector: Detector, digits: Batch, training_digits: Batch
) -> None:
    images, labels = digits[0][1000:1010], digits[1][1000:1010]
    batches = [(images, labels), (training_digits[0][:10], training_digits[1][:10])]
    with pytest.raises(InputError, match="learned from, got 10 of 20 that the fit"):
        evaluate_adaptive(detector, batches, epsilon=0.1, steps=1)
    with pytest.raises(InputError, match="a correctly classified image"):
        evaluate_adaptive(detector, images, (labels + 1) % 10, epsilon=0.1, steps=1)
    with pytest.raises(InputError, match="expected labels, got none"):
        evaluate_adaptive(detector, images, epsilon=0.1, steps=1)
    for epsilon in (0.0, float("nan")):
        with pytest.raises(InputError, match="an epsilon above 0"):
            evaluate_adaptive(detector, images, labels, epsilon=epsilon, steps=1)


def test_the_excess_of_the_guard_is_the_largest(detector: Detector, digits: Batch) -> None:
    images = digits[0][1000:1030]
    target, own = target_of(detector), detector.differentiable_excess(digits[0][1000:1030])
    each = detector.differentiable_excess(images, apart=True)
    assert each.shape == (1 if detector.sentinel_ is None else 2, 30)
    assert torch.equal(each.amax(0), own)
    # The surrogate of the score and the sentinel's exact one decide nearly as the detector does.
    assert (each.amax(0) > 0).eq(target.judge(images)[1] > 0).double().mean() >= 0.9
    assert (target.apart is None) == (detector.sentinel_ is None)
    if target.apart is not None:
        assert torch.equal(target.apart(images), each)
        assert len(each.argmax(0).unique()) == 2


def test_the_robust_error_counts_decisions() -> None:
    right, accepted, evaded = (
        np.array(mask, dtype=bool)
        for mask in ([1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 1])
    )
    # Decided on: the accepted ones (first, second, fifth), and the third, which evades once
    # attacked; wrong are all of these but the second.
    assert robust_error(right, accepted, evaded) == 3 / 4
    assert robust_error(right, accepted, ~right) == 1 / 3
    with pytest.raises(InputError, match="the same length"):
        robust_error(right, accepted, evaded[:-1])
    with pytest.raises(InputError, match="an accepted image"):
        robust_error(right, ~right & right, ~right)
