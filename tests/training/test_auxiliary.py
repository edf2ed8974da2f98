"""The auxiliary network's training: what it learns, and what it depends on."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from leery.data import load
from leery.errors import InputError
from leery.models import multiplications
from leery.training import (
    Augmentation,
    AuxiliaryNetwork,
    AuxiliaryRecipe,
    TrainingSet,
    train_auxiliary,
)

SMALL = AuxiliaryRecipe(width=8, epochs=4, min_images=1)


def digits(count: int = 3000) -> TrainingSet:
    images, labels = load("mnist", "train")
    return TrainingSet.gathered([(images[:count], labels[:count])])


def logits(network: AuxiliaryNetwork, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(images)
    return found


def test_a_small_network_learns_digits_from_a_few_epochs() -> None:
    network = train_auxiliary(digits(), classes=10, recipe=SMALL)
    images, labels = (part[:1000] for part in load("mnist", "test"))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert float((logits(network, images).argmax(1) == labels).double().mean()) > 0.9


def test_the_order_and_the_cut_of_the_data_do_not_matter_nor_does_the_global_state() -> None:
    images, labels = (part[:300] for part in load("mnist", "train"))
    order = torch.randperm(300)
    one = TrainingSet.gathered([(images, labels)])
    other = TrainingSet.gathered(zip(images[order].split(70), labels[order].split(70), strict=True))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)
    before = torch.get_rng_state()
    recipe = AuxiliaryRecipe(width=4, epochs=2, min_images=1)
    first, again, third = (
        train_auxiliary(data, classes=10, recipe=recipe, seed=seed)
        for data, seed in ((one, 3), (other, 3), (one, 4))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(first, images), logits(again, images))
    assert not torch.equal(logits(first, images), logits(third, images))


def test_training_under_inference_mode_and_without_gradients_works() -> None:
    recipe = AuxiliaryRecipe(width=4, epochs=1, min_images=1)
    with torch.inference_mode():
        one = train_auxiliary(digits(200), classes=10, recipe=recipe)
    with torch.no_grad():
        two = train_auxiliary(digits(200), classes=10, recipe=recipe)
    images = load("mnist", "test")[0][:5]
    assert torch.equal(logits(one, images), logits(two, images))


def test_progress_ends_at_one() -> None:
    told: list[float] = []
    recipe = AuxiliaryRecipe(width=4, epochs=2, min_images=1)
    train_auxiliary(digits(300), classes=10, recipe=recipe, progress=told.append)
    assert told[-1] == 1
    assert told == sorted(told)
    assert len(told) == recipe.steps(300) == math.ceil(600 / 128)


@pytest.mark.parametrize(
    ("count", "images"), [(60_000, 420_000), (6000, 120_000), (1000, 40_000), (100, 6000)]
)
def test_large_sets_are_seen_less_often_and_small_ones_more(count: int, images: int) -> None:
    assert AuxiliaryRecipe().steps(count) == math.ceil(images / 128)


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 8, 8), (1, 5, 9), (4, 1, 1)]
)
def test_networks_are_made_for_images_of_any_size(shape: tuple[int, int, int]) -> None:
    network = AuxiliaryNetwork(shape, 7, width=4).initialise(torch.Generator().manual_seed(0))
    assert logits(network.eval(), torch.rand(3, *shape)).shape == (3, 7)


def test_the_pixels_bounds_are_mapped_to_the_unit_interval() -> None:
    images = torch.rand(5, 2, 8, 8)
    generator = torch.Generator().manual_seed(0)
    plain = AuxiliaryNetwork((2, 8, 8), 3, width=4).initialise(generator).eval()
    pixels = ((-1.0, 3.0), (10.0, 20.0))
    other = AuxiliaryNetwork((2, 8, 8), 3, width=4, pixels=pixels).eval()
    state = {**plain.state_dict(), "low": other.low, "span": other.span}
    other.load_state_dict(state)
    low, span = torch.tensor([-1.0, 10.0]), torch.tensor([4.0, 10.0])
    moved = low.view(1, 2, 1, 1) + images * span.view(1, 2, 1, 1)
    assert torch.allclose(logits(other, moved), logits(plain, images), atol=1e-5)


def test_initial_weights_have_torch_s_own_distribution() -> None:
    network = AuxiliaryNetwork((1, 28, 28), 10, width=64)
    network.initialise(torch.Generator().manual_seed(0))
    ours = network.get_parameter("features.2.0.weight").detach()
    theirs = torch.nn.Conv2d(64, 128, 3).weight.detach()
    assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.01)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.02)


def test_augmented_images_stay_in_bounds_and_some_are_left_as_they_are() -> None:
    images = load("mnist", "train")[0][:900]
    made = Augmentation()(images, torch.Generator().manual_seed(0))
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    # Sampled at its own grid, an image comes back to rounding.
    same = (made - images).flatten(1).abs().amax(1) < 1e-4
    # A binomial share of 900 has a standard deviation of 1.6 %.
    assert float(same.double().mean()) == pytest.approx(0.3, abs=0.065)


def test_augmentation_of_strength_zero_changes_nothing() -> None:
    nothing = Augmentation(0, 0, 0, 0, 0, 0, 0)
    images = torch.rand(6, 3, 8, 8)
    made = nothing(images, torch.Generator().manual_seed(0))
    assert torch.allclose(made, images, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "width", "chosen"),
    [(32, 2, 16), (32, 29, 24), (32, 60, 32), (32, 2000, 48), (64, 2000, 16)],
)
def test_the_network_is_as_wide_as_the_cost_of_the_classifier_allows(
    size: int, width: int, chosen: int
) -> None:
    data = TrainingSet(torch.rand(20, 3, size, size), torch.arange(20) % 2)
    # Multiplications per image: size ** 2 * width * (3 + 288) + 288 * 2.
    model = nn.Sequential(
        *(nn.Conv2d(3, width, 1), nn.Conv2d(width, 288, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(288, 2)),
    ).eval()
    recipe = AuxiliaryRecipe(epochs=1, min_images=1).suited_to(model, data, classes=2)
    assert recipe.width == chosen
    network = train_auxiliary(data, classes=2, recipe=recipe)
    assert network.get_parameter("features.0.0.weight").shape == (chosen, 3, 5, 5)
    cost = multiplications(network, data.images)
    assert cost <= 36e6
    assert chosen == 16 or cost <= multiplications(model, data.images)


class Uncountable(nn.Module):
    """A classifier that refuses to run with gradients."""

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return images.flatten(1)[:, :2]


def test_a_classifier_that_cannot_be_counted_gets_the_narrowest_network() -> None:
    data = TrainingSet(torch.rand(20, 3, 8, 8), torch.arange(20) % 2)
    assert AuxiliaryRecipe().suited_to(Uncountable(), data, classes=2).width == 16


class Brighter(nn.Module):
    """Class 1 if the second half of the image along an axis is the brighter one."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, images: Tensor) -> Tensor:
        first, second = (half.flatten(1).mean(1) for half in images.chunk(2, self.axis))
        return torch.stack([first - second, second - first], 1)


def brighter_halves(axis: int, seed: int = 0) -> TrainingSet:
    drawn = torch.Generator().manual_seed(seed)
    images, labels = 0.4 * torch.rand(400, 1, 8, 8, generator=drawn), torch.arange(400) % 2
    for image, label in zip(images, labels.tolist(), strict=True):
        image.narrow(axis - 1, 4 * label, 4).add_(0.5)
    return TrainingSet(images, labels)


def learned(axis: int, *, mirror: bool) -> float:
    """Mean probability that a small network gives the class of new images.

    Not its accuracy, which is a matter of chance where the network is undecided.
    """
    recipe = AuxiliaryRecipe(width=4, min_images=8000, mirror=mirror)
    network = train_auxiliary(brighter_halves(axis), classes=2, recipe=recipe)
    new = brighter_halves(axis, seed=1)
    found = logits(network, new.images).softmax(1).gather(1, new.labels.unsqueeze(1))
    return float(found.mean())


@pytest.mark.parametrize(("axis", "mirror"), [(3, False), (2, True)])
def test_mirror_images_are_used_where_the_classifier_gets_them_right(
    axis: int, *, mirror: bool
) -> None:
    data, model = brighter_halves(axis), Brighter(axis)
    assert torch.equal(model(data.images).argmax(1), data.labels)
    recipe = AuxiliaryRecipe(width=4)
    assert recipe.suited_to(model, data, classes=2).mirror is mirror
    kept = replace(recipe, mirror=not mirror)
    assert kept.suited_to(model, data, classes=2) == kept
    assert learned(axis, mirror=mirror) > 0.95


def test_mirror_images_with_wrong_labels_spoil_what_is_learned() -> None:
    assert learned(3, mirror=True) < 0.6


def test_small_digits_are_learned() -> None:
    found = load_digits()
    images = torch.from_numpy(found.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    network = train_auxiliary(TrainingSet(images[:1200], labels[:1200]), classes=10)
    right = (logits(network, images[1200:]).argmax(1) == labels[1200:]).double().mean()
    assert float(right) > 0.9


def test_impossible_recipes_are_refused() -> None:
    with pytest.raises(InputError, match="expected width"):
        AuxiliaryRecipe(width=0)
    with pytest.raises(InputError, match="learning rate above 0"):
        AuxiliaryRecipe(learning_rate=0)
