"""The distance to the boundary against a closed form and foolbox, and its laws."""

import foolbox
import pytest
import torch
from torch import Tensor, nn

from leery.errors import InputError
from leery.metrics import BoundaryDistance
from leery.observation import Observer

Batch = tuple[Tensor, Tensor]


def distance(model: nn.Module, images: Tensor, **settings: int) -> Tensor:
    metric = BoundaryDistance(**settings)
    found: Tensor = metric(next(iter(Observer(model, metric.needs).stream(images))))
    return found


def test_of_a_linear_classifier_it_is_the_distance_to_the_hyperplane() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    images = torch.rand(20, 1, 2, 2)
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        logits = model(images).double()
    weights, predicted = linear.weight.detach().double(), logits.argmax(1)
    expected = []
    for row in range(20):
        own = int(predicted[row])
        gaps = [
            float((logits[row, own] - logits[row, other]) / (weights[own] - weights[other]).norm())
            for other in range(3)
            if other != own
        ]
        expected.append(min(gaps))
    # One step overshoots by 2 %; from beyond the boundary no further step is taken.
    assert torch.allclose(
        distance(model, images, candidates=2) / 1.02,
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-3,
    )


def test_steps_reach_the_other_class_like_foolbox_s_deepfool(
    digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:40] for part in digits)
    rival = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10)
    wrapped = foolbox.PyTorchModel(digit_net, bounds=(-100, 100))
    made = rival(wrapped, images, digit_net(images).argmax(1), epsilons=None)[0]
    expected = (made - images).flatten(1).norm(dim=1).double()
    found = distance(digit_net, images, steps=20, candidates=9)
    assert labels.shape == (40,)
    assert torch.allclose(found, expected, rtol=0.05)


def test_more_steps_never_shorten_it_and_a_batch_changes_nothing(
    digit_net: nn.Module, digits: Batch
) -> None:
    images = digits[0][:20]
    three = distance(digit_net, images)
    assert three.dtype == torch.float64
    assert bool((three > 0).all())
    assert torch.allclose(distance(digit_net, images[:4]), three[:4], rtol=1e-3)
    with torch.no_grad(), torch.inference_mode():
        assert torch.allclose(distance(digit_net, images), three, rtol=1e-5)


def test_a_classifier_without_gradient_gives_a_finite_distance() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    nn.init.zeros_(linear.weight)
    assert bool(distance(model, torch.rand(3, 1, 2, 2)).isfinite().all())


def test_the_stand_in_has_a_gradient(digit_net: nn.Module, digits: Batch) -> None:
    images = digits[0][:5].clone().requires_grad_()
    metric = BoundaryDistance()
    seen = Observer(digit_net, metric.needs).observe_with_gradient(images)
    (gradient,) = torch.autograd.grad(metric.smooth(seen).sum(), images)
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(InputError, match="steps"):
        BoundaryDistance(0)
