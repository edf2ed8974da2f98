"""The shipped classifiers reach the paper's accuracy; training is seeded and recorded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from leery.classifiers import (
    RECIPES,
    DigitNet,
    FashionNet,
    Recipe,
    ResNet20,
    accuracy,
    load_classifier,
    pretrained,
    save_classifier,
    train,
)
from leery.data import load
from leery.errors import DataError, InputError


@pytest.mark.parametrize(("name", "paper"), [("mnist", 0.9884), ("fashion-mnist", 0.9203)])
def test_the_shipped_weights_reach_the_papers_accuracy(name: str, paper: float) -> None:
    classifier = pretrained(name)
    images, labels = load(name, "test")
    found = accuracy(classifier.model, images, labels)
    assert found >= paper
    # Another processor may round one image over the boundary.
    assert found == pytest.approx(classifier.record["test_accuracy"], abs=2e-4)
    assert classifier.record["seed"] == 0
    assert classifier.record["recipe"]["epochs"] == 10


def test_the_weights_for_cifar_10_are_small_and_recorded() -> None:
    classifier = pretrained("cifar-10")
    assert isinstance(classifier.model, ResNet20)
    weights = classifier.model.state_dict()
    assert all(
        torch.equal(tensor, tensor.half().float())
        for tensor in weights.values()
        if tensor.is_floating_point()
    )
    assert sum(tensor.numel() for tensor in weights.values()) < 300_000
    record = classifier.record
    assert Recipe(**record["recipe"]) == RECIPES["cifar-10"]
    # The images are not part of the project: only the record tells the accuracy.
    assert record["test_accuracy"] >= 0.88
    assert all("jpeg" in name for name in record["data_sha256"])


def test_the_networks_have_the_layers_of_table_1() -> None:
    def shapes(model: nn.Module) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]

    assert shapes(DigitNet()) == [(10, 1, 3, 3), (20, 10, 3, 3), (128, 2880), (10, 128)]
    assert shapes(FashionNet()) == [
        (32, 1, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3),
        (600, 3136), (128, 600), (10, 128),
    ]  # fmt: skip
    for model, layers in ((DigitNet(0.4), 2), (FashionNet(0.4), 3)):
        rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        assert rates == [0.4] * layers
        assert model.hidden(model.convolutions(torch.rand(2, 1, 28, 28))).shape == (2, 128)


def test_training_is_seeded_learns_and_leaves_the_random_state_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def few(name: str, split: str, root: object = None) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = load(name, split, root)  # type: ignore[arg-type]
        return images[:2000], labels[:2000]

    monkeypatch.setattr("leery.classifiers._training.data.load", few)
    recipe = replace(RECIPES["mnist"], epochs=2)
    state = torch.get_rng_state()
    one, again = (train("mnist", recipe=recipe, seed=3) for _ in range(2))
    other = train("mnist", recipe=recipe, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [trained.model.state_dict()["hidden.0.weight"] for trained in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.record["test_accuracy"] > 0.7
    assert one.record["command"] == "leery train mnist --seed 3 --dropout 0.5"
    assert not one.model.training


def test_saved_weights_come_back_and_damage_is_noticed(tmp_path: Path) -> None:
    shipped = pretrained("mnist")
    path = save_classifier(shipped, tmp_path / "weights")
    loaded = load_classifier(tmp_path / "weights", "mnist")
    for name, tensor in shipped.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.record == shipped.record
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"weights of mnist and their record in .*train them again"):
        load_classifier(tmp_path / "weights", "mnist")
    with pytest.raises(DataError, match="No such file"):
        load_classifier(tmp_path, "mnist")


def test_unknown_datasets_and_empty_batches_are_refused(digit_net: nn.Module) -> None:
    with pytest.raises(InputError, match="got 'cifar'; the names are mnist"):
        pretrained("cifar")
    with pytest.raises(InputError, match="seed of at least 0, got -1"):
        train("mnist", seed=-1)
    for setting, text in (
        ({"epochs": 0}, "at least 1 epoch, got 0"),
        ({"learning_rate": -1.0}, "learning rate above 0, got -1.0"),
        ({"dropout": 1.0}, r"dropout probability in \[0, 1\), got 1.0"),
        ({"batch_size": 0}, "batch size of at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=text):
            replace(RECIPES["mnist"], **setting)
    with pytest.raises(InputError, match="at least one image, got an empty batch"):
        accuracy(digit_net, torch.rand(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match=r"shape \(2,\), got \(1,\)"):
        accuracy(digit_net, torch.rand(2, 1, 28, 28), torch.zeros(1, dtype=torch.int64))
