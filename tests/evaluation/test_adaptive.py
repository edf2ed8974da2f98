"""What an attacker sees of a detector."""

import numpy as np
import pytest
import torch
from torch import nn

from leery import Detector, NotFittedError
from leery.attacks.adaptive import adaptive_attacks, worst_case
from leery.certify import pretrained_sentinel
from leery.evaluation import target_of
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
