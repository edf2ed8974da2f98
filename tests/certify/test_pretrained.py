"""The sentinels that ship with leery, and their records."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import leery.certify
from leery.certify import pretrained_sentinel
from leery.classifiers import pretrained
from leery.data import load
from leery.errors import DataError, InputError, UnsupportedModelError
from leery.models import predict

WEIGHTS = Path(leery.certify.__file__).parent / "weights"

LEAST = {"mnist": (0.1, 0.93), "fashion-mnist": (0.03, 0.45)}
"""An epsilon, and a share of the images certified at it that is well below what was measured."""


@pytest.mark.parametrize("dataset", LEAST)
def test_shipped_sentinels_certify_what_they_are_trained_for(dataset: str) -> None:
    model = pretrained(dataset).model
    images, labels = load(dataset, "test")
    sentinel = pretrained_sentinel(dataset, model)
    sentinel.calibrate(images[:4000], labels[:4000], fpr=0.01)
    images, labels = images[4000:6000], labels[4000:6000]
    right = predict(model, images) == labels
    epsilon, least = LEAST[dataset]
    assert sentinel.flag(images[right]).mean() < 0.03
    assert sentinel.certify(images[right], labels[right], epsilon=epsilon).mean() > least


def test_the_weights_take_less_than_a_megabyte() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 1_000_000


@pytest.mark.parametrize("dataset", LEAST)
def test_records_say_how_and_on_what_each_was_trained(dataset: str) -> None:
    record = json.loads((WEIGHTS / f"{dataset}.json").read_text())
    assert record["data_sha256"] == pretrained(dataset).record["data_sha256"]
    assert record["recipe"]["epochs"] > 0
    assert "5000" in record["held_out"]
    assert record["parts"]["calibration"] is None


def test_each_classifier_needs_a_calibration_of_its_own(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits[0][:500], digits[1][:500]

    class Says3(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    found = [
        pretrained_sentinel("mnist", model).calibrate(images, labels, fpr=0.1).thresholds_[0]
        for model in (pretrained("mnist").model, Says3())
    ]
    assert found[0] != found[1]


def test_datasets_without_a_sentinel_and_other_classes_are_refused(
    digits: tuple[Tensor, Tensor],
) -> None:
    with pytest.raises(InputError, match="no sentinel ships; fit a leery.certify.Sentinel"):
        pretrained_sentinel("cifar-10", pretrained("mnist").model)
    last = nn.Linear(784, 20)
    with torch.no_grad():
        last.bias[15] = 100
    wide = nn.Sequential(nn.Flatten(), last)
    with pytest.raises(UnsupportedModelError, match="10 classes, got class 15"):
        pretrained_sentinel("mnist", wide).score(digits[0][:5])


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    for path in WEIGHTS.iterdir():
        (tmp_path / "weights" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr("leery.certify._pretrained.files", lambda _package: tmp_path)
    (tmp_path / "weights" / "mnist.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="expected the weights of mnist and their record"):
        pretrained_sentinel("mnist", pretrained("mnist").model)
    record = tmp_path / "weights" / "fashion-mnist.json"
    facts = json.loads(record.read_text())
    del facts["inputs"]
    record.write_text(json.dumps(facts))
    with pytest.raises(DataError, match="inputs"):
        pretrained_sentinel("fashion-mnist", pretrained("fashion-mnist").model)
