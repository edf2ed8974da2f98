"""The smallest evasion against exact solutions of linear problems."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor, nn

from leery.attacks.adaptive import CarliniWagner, SmallestEvasion
from leery.errors import InputError
from tests.conftest import Batch

ATTACKS = {
    "augmented Lagrangian": SmallestEvasion,
    "Carlini and Wagner": lambda excess: CarliniWagner(excess, steps=300),
}


def linear() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear classifier of four classes, images, their classes and the detector's direction."""
    generator = torch.Generator().manual_seed(1)
    last = nn.Linear(20, 4)
    model = nn.Sequential(nn.Flatten(), last).eval()
    with torch.no_grad():
        last.weight.copy_(torch.randn(4, 20, generator=generator))
        last.bias.copy_(0.1 * torch.randn(4, generator=generator))
    images = 0.3 + 0.4 * torch.rand(12, 1, 4, 5, generator=generator)
    with torch.no_grad():
        labels = model(images).argmax(1)
    return model, images, labels, torch.randn(20, generator=generator)


def exact(model: nn.Module, image: Tensor, label: int, limit: "LinearConstraint | None") -> float:
    """The smallest L2 change that makes another class win, by quadratic programming."""
    weight, bias = (part.detach().double().numpy() for part in model[1].parameters())  # type: ignore[index]
    start = image.double().flatten().numpy()
    found = []
    for other in range(len(bias)):
        if other == label:
            continue
        wins = LinearConstraint(weight[other] - weight[label], bias[label] - bias[other], np.inf)
        done = minimize(
            lambda x: ((x - start) ** 2).sum(),
            start,
            jac=lambda x: 2 * (x - start),
            bounds=[(0, 1)] * len(start),
            constraints=[wins, *([] if limit is None else [limit])],
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-12},
        )
        if done.success:
            found.append(float(np.sqrt(done.fun)))
    return min(found)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("guarded", [False, True])
def test_the_distance_is_nearly_that_of_the_quadratic_program(name: str, guarded: bool) -> None:
    model, images, labels, direction = linear()
    # Flagged are images that do not move against the direction by 2.
    here = images.flatten(1) @ direction

    def excess(points: Tensor) -> Tensor:
        return points.flatten(1) @ direction - here[: len(points)] + 2

    made = ATTACKS[name](excess if guarded else None)(model, images, labels)  # type: ignore[operator]
    with torch.no_grad():
        assert bool((model(made).argmax(1) != labels).all())
    if guarded:
        assert float(excess(made).max()) <= 1e-6
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    distances = (made - images).flatten(1).norm(dim=1).double().numpy()
    least = []
    for row in range(len(images)):
        limit = LinearConstraint(direction.double().numpy(), -np.inf, float(here[row]) - 2)
        least.append(exact(model, images[row], int(labels[row]), limit if guarded else None))
    ratios = distances / np.array(least)
    assert ratios.min() > 0.999
    assert np.median(ratios) < 1.05
    if not guarded:
        return
    free = np.array([exact(model, images[row], int(labels[row]), None) for row in range(12)])
    # Or the detector would ask for nothing.
    assert np.median(np.array(least) / free) > 1.02


class Darker(nn.Module):
    """The digit classifier of images with pixels from 0 to 255."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images / 255)
        return logits


@pytest.mark.parametrize(
    "attack",
    [SmallestEvasion(steps=60), CarliniWagner(steps=60, rounds=2, weight=10.0, learning_rate=0.1)],
    ids=["ALMA", "CW"],
)
def test_another_pixel_range_scales_the_distance(
    attack: SmallestEvasion, digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:10] for part in digits)
    unit = (attack(digit_net, images, labels) - images).flatten(1).norm(dim=1)
    wide = replace(attack, bounds=(0.0, 255.0))
    made = wide(Darker(digit_net).eval(), 255 * images, labels)
    scaled = (made - 255 * images).flatten(1).norm(dim=1)
    assert float(unit.median()) > 0.3
    assert torch.allclose(scaled / 255, unit, rtol=0.05, atol=0.02)


def test_where_nothing_is_found_the_clean_image_is_returned(
    digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = (part[:3] for part in digits)
    for attack in (
        SmallestEvasion(lambda points: 0 * points.flatten(1).sum(1) + 1, steps=5),
        CarliniWagner(lambda points: 0 * points.flatten(1).sum(1) + 1, steps=5, rounds=2),
    ):
        assert torch.equal(attack(digit_net, images, labels), images)


def test_settings_are_checked(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:3] for part in digits)
    with pytest.raises(InputError, match="steps"):
        SmallestEvasion(steps=0)
    with pytest.raises(InputError, match="rounds"):
        CarliniWagner(rounds=0)
    with pytest.raises(InputError, match="within the bounds"):
        SmallestEvasion()(digit_net, images + 1, labels)


@pytest.mark.parametrize(
    "attack", [SmallestEvasion(), CarliniWagner(steps=300)], ids=["ALMA", "CW"]
)
def test_two_classes_are_enough(attack: SmallestEvasion) -> None:
    generator = torch.Generator().manual_seed(0)
    last = nn.Linear(20, 2)
    with torch.no_grad():
        last.weight.copy_(torch.randn(2, 20, generator=generator))
    model = nn.Sequential(nn.Flatten(), last).eval()
    images = 0.3 + 0.4 * torch.rand(20, 1, 4, 5, generator=generator)
    with torch.no_grad():
        labels = model(images).argmax(1)
        made = attack(model, images, labels)
        assert bool((model(made).argmax(1) != labels).all())


def test_the_confidence_is_kept(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = (part[:5] for part in digits)
    sure = CarliniWagner(steps=60, rounds=2, weight=10.0, learning_rate=0.1, confidence=2.0)
    made = sure(digit_net, images, labels)
    with torch.no_grad():
        logits = digit_net(made)
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)
    lead = others - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    moved = (made != images).flatten(1).any(1)
    assert int(moved.sum()) >= 3
    assert bool((lead[moved] > 2).all())


def test_reversed_bounds_are_refused() -> None:
    with pytest.raises(InputError):
        SmallestEvasion(bounds=(1.0, 0.0))


@pytest.mark.parametrize(
    "attack", [SmallestEvasion(steps=100), CarliniWagner(steps=60, rounds=3)], ids=["ALMA", "CW"]
)
def test_half_precision_gives_nearly_the_same(attack: SmallestEvasion) -> None:
    model, images, labels, _ = linear()
    single = (attack(model, images, labels) - images).flatten(1).norm(dim=1)
    short = images.half()
    made = attack(model.half(), short, labels)
    assert made.dtype == torch.float16
    with torch.no_grad():
        assert bool((model(made).argmax(1) != labels).all())
    half = (made.float() - short.float()).flatten(1).norm(dim=1)
    assert torch.allclose(half.median(), single.median(), rtol=0.02)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_infinite_threshold_is_no_guard(name: str) -> None:
    model, images, labels, _ = linear()

    def excess(points: Tensor) -> Tensor:
        return torch.full((len(points),), -torch.inf) + 0 * points.flatten(1).sum(1)

    made = ATTACKS[name](excess)(model, images, labels)  # type: ignore[operator]
    assert bool((model(made).argmax(1) != labels).all())
