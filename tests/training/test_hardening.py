"""Classifiers that are trained to resist attacks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leery.attacks import PGD
from leery.classifiers import (
    HARDENED,
    RECIPES,
    Recipe,
    build,
    load_classifier,
    pretrained,
    save_classifier,
    train,
)
from leery.data import load
from leery.errors import InputError
from leery.intervals import Box, interval_bounds, margin_bounds
from leery.models import predict
from leery.training import run_epochs
from tests.conftest import Batch


def trained(recipe: Recipe, data: Batch) -> nn.Module:
    """A digit classifier after a training with this recipe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build("mnist", dropout=recipe.dropout)
        run_epochs(model, *data, recipe, "test", progress=False)
    return model


def robust(model: nn.Module, data: Batch, epsilon: float) -> float:
    """The share of images that projected gradient descent does not fool."""
    images, labels = data
    return float((predict(model, PGD(epsilon)(model, images, labels)) == labels).double().mean())


def test_the_shipped_classifier_resists_attacks_that_fool_the_plain_one(digits: Batch) -> None:
    shipped = pretrained("mnist", "adversarial")
    few = digits[0][:200], digits[1][:200]
    assert shipped.record["test_accuracy"] >= 0.99
    assert Recipe(**shipped.record["recipe"]) == HARDENED["mnist"]["adversarial"]
    assert shipped.record["command"].startswith("leery train mnist --recipe adversarial --seed 0")
    assert float((predict(shipped.model, few[0]) == few[1]).double().mean()) >= 0.985
    assert robust(shipped.model, few, 0.3) >= 0.9
    assert robust(pretrained("mnist").model, few, 0.3) <= 0.1


def test_the_shipped_interval_weights_resist_provably(digits: Batch) -> None:
    shipped = pretrained("mnist", "interval")
    images, labels = digits[0][:300], digits[1][:300]
    assert Recipe(**shipped.record["recipe"]) == HARDENED["mnist"]["interval"]
    assert shipped.record["command"].startswith("leery train mnist --recipe interval --seed 0")
    right = float((predict(shipped.model, images) == labels).double().mean())
    assert right == pytest.approx(shipped.record["test_accuracy"], abs=0.03)
    box = Box((images - 0.3).clamp_min(0), (images + 0.3).clamp_max(1))
    verified = []
    for model in (shipped.model, pretrained("mnist").model):
        network = nn.Sequential(*model.children()).eval()
        with torch.no_grad():
            bounds = margin_bounds(network, box, labels)
        others = bounds.scatter(1, labels.unsqueeze(1), torch.inf).amin(1)
        verified.append(float((others > 0).double().mean()))
    assert verified[0] > 0.8
    assert verified[1] == 0
    # What is proved is a lower bound of what attacks leave right.
    assert robust(shipped.model, (images, labels), 0.3) >= verified[0]


@pytest.mark.parametrize("name", [pytest.param("adversarial", marks=pytest.mark.slow), "interval"])
def test_hardening_makes_a_classifier_more_robust(
    name: str, digits: Batch, training_digits: Batch
) -> None:
    settings = {"epochs": 6, "batch_size": 32, "epsilon": 0.1, "warmup": 0.8}
    recipe = replace(HARDENED["mnist"][name], **settings)  # type: ignore[arg-type]
    data = training_digits[0][:2000], training_digits[1][:2000]
    few = digits[0][:200], digits[1][:200]
    hardened = trained(recipe, data)
    plain = trained(replace(recipe, hardening="none"), data)
    assert float((predict(hardened, few[0]) == few[1]).double().mean()) > 0.85
    assert robust(hardened, few, 0.1) > robust(plain, few, 0.1) + 0.1
    if name == "interval":
        assert _width(hardened, few[0]) < 0.1 * _width(plain, few[0])


def _width(model: nn.Module, images: Tensor) -> float:
    """The mean length of the intervals of the logits within 0.1."""
    network = nn.Sequential(*model.children()).eval()
    box = Box((images - 0.1).clamp_min(0), (images + 0.1).clamp_max(1))
    with torch.no_grad():
        found = interval_bounds(network, box)
    return float((found.upper - found.lower).mean())


def test_a_distilled_classifier_learns_the_softmax_of_another_one(
    monkeypatch: pytest.MonkeyPatch, digits: Batch
) -> None:
    def few(name: str, split: str, root: object = None) -> Batch:
        images, labels = load(name, split, root)  # type: ignore[arg-type]
        return images[:1500], labels[:1500]

    monkeypatch.setattr("leery.classifiers._training.data.load", few)
    recipe = replace(HARDENED["mnist"]["distillation"], epochs=3)
    found = train("mnist", recipe=recipe, seed=0)
    assert found.record["command"] == (
        "leery train mnist --recipe distillation --seed 0 --dropout 0.5"
    )
    assert found.record["test_accuracy"] > 0.5
    plain = train("mnist", recipe=replace(RECIPES["mnist"], epochs=3), seed=0)
    # Trained at a temperature of 20, the logits are large, so that gradients of the plain softmax
    # are nearly 0: they are hidden, and the classifier is not robust.
    images, labels = digits[0][:100], digits[1][:100]
    assert _gradient(found.model, images, labels) < 0.5 * _gradient(plain.model, images, labels)


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The median length of the gradient of the cross-entropy."""
    seen = images.clone().requires_grad_()
    loss = functional.cross_entropy(model(seen), labels, reduction="sum")
    return float(torch.autograd.grad(loss, seen)[0].flatten(1).norm(dim=1).median())


def test_a_hardened_classifier_comes_back_from_its_folder(tmp_path: Path) -> None:
    shipped = pretrained("mnist", "adversarial")
    assert save_classifier(shipped, tmp_path).name == "mnist-adversarial.safetensors"
    loaded = load_classifier(tmp_path, "mnist", "adversarial")
    for name, tensor in shipped.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        InputError, match="expected one of the recipes plain, adversarial, interval for"
    ):
        pretrained("mnist", "distillation")
    with pytest.raises(InputError, match="expected one of the recipes plain for fashion-mnist"):
        pretrained("fashion-mnist", "adversarial")
    for settings in ({"epsilon": 1.0}, {"warmup": 2.0}, {"temperature": 0.0}):
        with pytest.raises(InputError, match="expected an epsilon"):
            Recipe(**settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected one of the hardenings"):
        Recipe(hardening="armour")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected no label smoothing and no temperature"):
        Recipe(hardening="adversarial", temperature=2.0)
    with pytest.raises(InputError, match="attack steps"):
        Recipe(attack_steps=0)
