"""Other libraries' attacks: success, budgets, bounds, and that nothing is left behind."""

import random
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leery.attacks import ADAPTED, AdaptedAttack
from leery.errors import InputError
from leery.models import predict

Batch = tuple[Tensor, Tensor]

QUICK = {
    "apgd": AdaptedAttack("apgd", 0.3),
    "square": AdaptedAttack("square", 0.4),
    **{name: AdaptedAttack(name) for name in ("deepfool", "ddn", "sparse", "spatial")},
}
"""C&W and HopSkipJump take minutes; they run in benchmarks/scenes.py."""


def right(model: nn.Module, digits: Batch, count: int = 24) -> Batch:
    """Digits that the classifier gets right."""
    images, labels = (part[:60] for part in digits)
    rows = torch.nonzero(predict(model, images) == labels).squeeze(1)[:count]
    return images[rows], labels[rows]


def numpy_words() -> np.ndarray:
    """The state of numpy's global generator, which some attacks draw from."""
    words: np.ndarray = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    return words


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_most_images_are_moved_inside_their_bounds(
    name: str, digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = right(digit_net, digits)
    before, states = images.clone(), (random.getstate(), torch.get_rng_state())
    numpy_state = numpy_words()
    made = QUICK[name](digit_net, images, labels)
    assert torch.equal(images, before)
    assert made.shape == images.shape
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert float((predict(digit_net, made) != labels).double().mean()) > 0.6
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert np.array_equal(numpy_words(), numpy_state)
    assert not digit_net.training
    assert all(parameter.requires_grad for parameter in digit_net.parameters())
    assert all(parameter.grad is None for parameter in digit_net.parameters())
    again = QUICK[name](digit_net, images, labels)
    assert torch.equal(again, made)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.2), ("l2", 2.0)])
@pytest.mark.parametrize("name", ["apgd", "square"])
def test_a_budget_is_used_and_not_exceeded(
    name: str, norm: str, epsilon: float, digit_net: nn.Module, digits: Batch
) -> None:
    images, labels = right(digit_net, digits, 12)
    attack = AdaptedAttack(name, epsilon, norm)  # type: ignore[arg-type]
    delta = (attack(digit_net, images, labels) - images).flatten(1)
    length = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert float(length.max()) <= epsilon * 1.001
    assert float(length.max()) >= epsilon * 0.8


@pytest.mark.filterwarnings("ignore")
def test_a_distance_is_in_the_units_of_the_images(digit_net: nn.Module, digits: Batch) -> None:
    class Wide(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = digit_net((images + 10) / 20)
            return logits

    images, labels = right(digit_net, digits, 8)
    plain = AdaptedAttack("apgd", 0.2)(digit_net, images, labels)
    attack = AdaptedAttack("apgd", 4.0).within((-10.0, 10.0))
    wide = attack(Wide().eval(), 20 * images - 10, labels)
    assert float((wide - (20 * images - 10)).abs().max()) <= 4.0 * 1.001
    assert float(((wide + 10) / 20 - plain).abs().mean()) < 0.05


def test_every_preset_says_what_it_is() -> None:
    for name, preset in ADAPTED.items():
        assert preset.library in ("foolbox", "art")
        assert preset.source
        assert preset.settings
        assert (preset.strength is None) or preset.default is not None or preset.distance, name


def test_impossible_attacks_are_refused() -> None:
    with pytest.raises(
        InputError, match="expected one of cw, .* as attack, got 'jsma'; choose one"
    ):
        AdaptedAttack("jsma")
    with pytest.raises(InputError, match="deepfool without a strength"):
        AdaptedAttack("deepfool", 0.3)
    with pytest.raises(InputError, match="expected epsilon for apgd, got no strength"):
        AdaptedAttack("apgd")
    with pytest.raises(InputError, match="norm l2 for cw, got 'linf'"):
        AdaptedAttack("cw", norm="linf")
    with pytest.raises(InputError, match="finite strength of at least 0, got -1"):
        AdaptedAttack("square", -1)
    different = AdaptedAttack("apgd", 0.1, bounds=((0.0, 1.0), (0.0, 2.0)))
    with pytest.raises(InputError, match="the same bounds for all channels for apgd"):
        different(nn.Flatten(), torch.rand(2, 2, 1, 1), torch.tensor([0, 1]))


def test_a_missing_library_prints_its_install_line(
    monkeypatch: pytest.MonkeyPatch, digit_net: nn.Module, digits: Batch
) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(InputError, match=r"pip install '.\[attacks\]'"):
        AdaptedAttack("ddn")(digit_net, digits[0][:2], digits[1][:2])


@pytest.mark.filterwarnings("ignore")
def test_an_image_without_a_start_stays_as_it_is(digits: Batch) -> None:
    class Stubborn(nn.Module):
        """Always class 0, whatever is shown."""

        def forward(self, images: Tensor) -> Tensor:
            flat = 0 * images.flatten(1).sum(1, keepdim=True)
            return torch.cat([flat + 5, flat], 1)

    images = digits[0][:3]
    made = AdaptedAttack("hopskipjump")(
        Stubborn().eval(), images, torch.zeros(3, dtype=torch.int64)
    )
    assert torch.equal(made, images)


@pytest.mark.filterwarnings("ignore")
def test_strength_zero_and_double_precision(digit_net: nn.Module, digits: Batch) -> None:
    images, labels = right(digit_net, digits, 4)
    assert torch.equal(AdaptedAttack("apgd", 0.0)(digit_net, images, labels), images)
    made = AdaptedAttack("apgd", 0.3)(digit_net.double(), images.double(), labels)
    assert made.dtype == torch.float64
    assert float((made - images).abs().max()) <= 0.3001


@pytest.mark.filterwarnings("ignore")
def test_where_carlini_and_wagner_find_nothing_the_image_stays() -> None:
    """foolbox returns black images there, which would count as adversarial."""
    images = torch.rand(3, 1, 6, 6)

    class Unmoved(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            kept = images.flatten(1).mean(1, keepdim=True)
            return torch.cat([kept * 0 + 50, kept * 0 - 50], 1)

    made = AdaptedAttack("cw", 0)(Unmoved().eval(), images, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(made, images)
