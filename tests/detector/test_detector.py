"""The detector end to end on real digits, its calibration, its file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from torch import Tensor, nn

import leery
from leery import Detector
from leery.attacks import BIM, gaussian_noise
from leery.classifiers import pretrained
from leery.detector._fingerprint import fingerprint
from leery.errors import (
    DetectorFileError,
    InputError,
    NoDropoutError,
    NotFittedError,
    OutputError,
    UnknownLayerError,
    WrongModelError,
)
from leery.features import extract_features
from leery.mc_dropout import MCDropout
from leery.metrics import ClassKL, KernelDensity, predictive_entropy, scibilic
from tests.conftest import Batch

PASSES = 20


@pytest.fixture(scope="module")
def detector(digits: Batch, training_digits: Batch) -> Detector:
    """Fitted, combined on digits 0-300 and calibrated on digits 1000-1400."""
    model = pretrained("mnist").model
    images, labels = digits
    found = Detector(model, "hidden", passes=PASSES).fit(*training_digits)
    adversarial = BIM(0.3)(model, images[:300], labels[:300])
    found.fit_combiner(images[:300], adversarial, gaussian_noise(images[:300], 0.3))
    return found.calibrate(images[1000:1400], fpr=0.05)


def test_the_six_metrics_are_measured_as_each_by_itself(
    detector: Detector, digits: Batch, training_digits: Batch
) -> None:
    images = digits[0][:30]
    table = detector.measure(images)
    assert table.names == leery.PAPER_METRICS
    assert table.values.shape == (30, 6)
    assert table.values.dtype == np.float64
    features, _logits = extract_features(detector.model, training_digits[0], "hidden")
    own, own_logits = extract_features(detector.model, images, "hidden")
    classes = own_logits.argmax(1)
    assert np.array_equal(table.predicted, classes.numpy())
    density = KernelDensity(1.7).fit(features, training_digits[1]).score(own, classes)
    divergence = ClassKL().fit(features, training_digits[1]).score(own, classes)
    probs = MCDropout(detector.model, PASSES).sample(images)
    assert np.allclose(table.column("kernel_density"), density.numpy(), atol=1e-4)
    assert np.allclose(table.column("kl_divergence"), divergence.numpy(), atol=1e-5)
    entropy = predictive_entropy(probs).numpy()
    assert np.allclose(table.column("predictive_entropy"), entropy, atol=1e-6)
    frame = table.to_pandas()
    assert list(frame.columns) == [*leery.PAPER_METRICS, "predicted"]
    assert frame["confidence"].between(0.1, 1).all()


def test_strong_attacks_are_found_and_clean_digits_pass(detector: Detector, digits: Batch) -> None:
    images, labels = (part[2000:2400] for part in digits)
    adversarial = BIM(0.3)(detector.model, images, labels)
    # A tenth of the training images is the reference here; the study measures the whole.
    assert detector.predict(adversarial).mean() > 0.75
    # Beta(21, 380) around 5 %: below 8.5 % in all but one of a thousand calibration sets.
    assert detector.predict(images).mean() < 0.085
    assert detector.score(adversarial).mean() > detector.score(images).mean()
    assert detector.predict(images).dtype == bool


@pytest.mark.parametrize("size", [1, 7])
def test_a_score_does_not_depend_on_the_batch(detector: Detector, digits: Batch, size: int) -> None:
    images = digits[0][:64]
    whole = detector.score(images)
    cut = np.concatenate([detector.score(part) for part in images.split(size)])
    assert np.abs(cut - whole).max() <= 1e-6


def test_any_metrics_can_be_chosen(digits: Batch, training_digits: Batch) -> None:
    model = pretrained("mnist").model
    names = ("scibilic", "kl_divergence", "aleatoric")
    chosen = Detector(model, "hidden", passes=5, metrics=names).fit(*training_digits)
    table = chosen.measure(digits[0][:10])
    assert table.names == names
    expected = scibilic(MCDropout(model, 5).sample(digits[0][:10]))
    assert np.allclose(table.column("scibilic"), expected.numpy(), atol=1e-5)


def test_closeness_alone_needs_no_dropout(digits: Batch, training_digits: Batch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
    found = Detector(model, "2", metrics=["kernel_density"], batch_size=4).fit(*training_digits)
    whole = found.measure(digits[0][:10]).column("kernel_density")
    alone = [found.measure(image.unsqueeze(0)).values[0, 0] for image in digits[0][:10]]
    assert np.allclose(whole, alone, atol=1e-6, rtol=0)
    with pytest.raises(NoDropoutError, match="metrics that need no dropout"):
        Detector(model, "2")


def test_the_false_alarm_rate_is_kept_on_average_over_calibration_sets(
    detector: Detector, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = detector.score(digits[0][3000:5000])
    copy = Detector.load(save(detector), detector.model)
    # The images' indices stand for the images: 200 calibrations need no image scored twice.
    monkeypatch.setattr(copy, "score", lambda rows: scores[rows.numpy()])
    generator = np.random.default_rng(0)
    for fpr in (0.01, 0.05, 0.2):
        rates = []
        for _ in range(200):
            order = torch.from_numpy(generator.permutation(len(scores)))
            copy.calibrate(order[:500], fpr)
            rates.append(copy.predict(order[500:]).mean())
        # The mean over sets is floor(fpr * 501) / 501; its standard error is below 0.0015.
        assert np.mean(rates) < fpr + 0.005
        assert np.mean(rates) > fpr - 0.01


def test_calibration_is_the_conformal_threshold_and_repeatable(
    detector: Detector, digits: Batch
) -> None:
    clean = digits[0][1000:1199]
    scores = np.sort(detector.score(clean))
    copy = Detector.load(save(detector), detector.model)
    for fpr, rank in ((0.05, 10), (0.005, 1), (0.5, 100)):
        copy.calibrate(clean, fpr)
        assert copy.calibration_ is not None
        assert copy.calibration_.threshold == scores[-rank]
        assert copy.predict(clean).sum() == rank - 1


def test_a_rate_that_so_few_images_cannot_support_is_refused(
    detector: Detector, digits: Batch
) -> None:
    copy = Detector.load(save(detector), detector.model)
    with pytest.raises(InputError, match=r"at least 99 clean images .* of 0.01, got 98; add"):
        copy.calibrate(digits[0][:98], fpr=0.01)
    copy.calibrate(digits[0][:99], fpr=0.01)
    copy.calibrate(digits[0][:6], fpr=1 - 1e-11)
    for fpr in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="false-alarm rate between 0 and 1, got"):
            copy.calibrate(digits[0][:10], fpr=fpr)


CALLS: dict[str, Callable[[Detector, Tensor], object]] = {
    "measure": lambda d, x: d.measure(x),
    "fit_combiner": lambda d, x: d.fit_combiner(x, x),
    "score": lambda d, x: d.score(x),
    "calibrate": lambda d, x: d.calibrate(x),
    "predict": lambda d, x: d.predict(x),
    "save": lambda d, _: d.save("/nowhere/d"),
}


@pytest.mark.parametrize("name", CALLS)
def test_everything_used_before_it_is_fitted_says_what_to_call_first(
    name: str, digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    fresh = Detector(digit_net, "hidden", passes=2)
    with pytest.raises(SklearnNotFittedError, match=r"after (fit|fit_combiner|calibrate)\("):
        CALLS[name](fresh, digits[0][:5])
    if name in ("score", "calibrate", "predict"):
        fresh.fit(*training_digits)
        with pytest.raises(NotFittedError, match=r"after (fit_combiner|calibrate)\("):
            CALLS[name](fresh, digits[0][:5])


def test_fitting_again_forgets_what_was_built_on_the_old_fit(
    detector: Detector, training_digits: Batch, digits: Batch
) -> None:
    copy = Detector.load(save(detector), detector.model)
    copy.fit_combiner(digits[0][:20], digits[0][:20] * 0.5)
    with pytest.raises(NotFittedError, match="after calibrate"):
        copy.predict(digits[0][:5])
    copy.fit(*training_digits)
    with pytest.raises(NotFittedError, match="after fit_combiner"):
        copy.score(digits[0][:5])


def test_bad_training_data_is_refused(digit_net: nn.Module, training_digits: Batch) -> None:
    images, labels = (part[:200] for part in training_digits)
    fresh = Detector(digit_net, "hidden", passes=2)
    with pytest.raises(InputError, match=r"labels in 0..9, got 0..10"):
        fresh.fit(images, labels + (labels == 9))
    with pytest.raises(InputError, match=r"all 10 classes, got none of \[3\]; add some"):
        fresh.fit(images[labels != 3], labels[labels != 3])
    with pytest.raises(InputError, match="got an empty batch"):
        fresh.fit(images[:0], labels[:0])
    with pytest.raises(InputError, match="NaN or infinity in 200 of 200"):
        fresh.fit(images * torch.nan, labels)
    with pytest.raises(
        InputError, match=r"images that the model accepts, got shape \(200, 1, 9, 9"
    ):
        fresh.fit(images[:, :, :9, :9], labels)
    with pytest.raises(InputError, match="torch.float64, which it refuses"):
        fresh.fit(images.double(), labels)
    with pytest.raises(NotFittedError):
        fresh.measure(images)


def test_impossible_settings_are_refused_with_the_possible_ones(digit_net: nn.Module) -> None:
    with pytest.raises(UnknownLayerError, match="got 'logits'; the model has: convolutions, .*hid"):
        Detector(digit_net, "logits")
    with pytest.raises(InputError, match=r"metrics out of variance, .*, got \['entropy'\]"):
        Detector(digit_net, "hidden", metrics=["entropy"])
    for names in ([], ["variance", "variance"]):
        with pytest.raises(InputError, match="distinct metrics"):
            Detector(digit_net, "hidden", metrics=names)
    with pytest.raises(InputError, match="bandwidth above 0, got 0"):
        Detector(digit_net, "hidden", bandwidth=0)


# ---- the file -----------------------------------------------------------------------------------

_FILES: dict[int, Path] = {}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    _FILES.clear()
    _FILES[0] = tmp_path


def save(detector: Detector) -> Path:
    path = _FILES[0] / "guard.leery"
    detector.save(path)
    return path


SCORE_ELSEWHERE = """
import sys, numpy, torch
torch.set_num_threads(1)
from leery import Detector
from leery.classifiers import pretrained
from leery.detector._fingerprint import fingerprint
from leery.data import load
detector = Detector.load(sys.argv[1], pretrained("mnist").model)
images = load("mnist", "test")[0][:50]
numpy.savez(sys.argv[2], score=detector.score(images), verdict=detector.predict(images))
"""


def test_a_loaded_detector_scores_bit_equal_in_a_new_process(
    detector: Detector, digits: Batch, tmp_path: Path
) -> None:
    path, out = save(detector), tmp_path / "scores.npz"
    subprocess.run([sys.executable, "-c", SCORE_ELSEWHERE, str(path), str(out)], check=True)
    with np.load(out) as found:
        assert np.array_equal(found["score"], detector.score(digits[0][:50]))
        assert np.array_equal(found["verdict"], detector.predict(digits[0][:50]))


def test_a_detector_without_combiner_can_be_saved(
    digit_net: nn.Module, training_digits: Batch, digits: Batch
) -> None:
    fitted = Detector(digit_net, "hidden", passes=3, bandwidth=0.9).fit(*training_digits)
    loaded = Detector.load(save(fitted), digit_net)
    expected = fitted.measure(digits[0][:9]).values
    assert np.array_equal(loaded.measure(digits[0][:9]).values, expected)
    with pytest.raises(NotFittedError):
        loaded.score(digits[0][:9])


def test_the_file_is_plain_safetensors_with_json(detector: Detector) -> None:
    with safetensors.safe_open(save(detector), framework="pt") as stream:
        facts = json.loads(stream.metadata()["leery"])
        names = set(stream.keys())
    assert facts["format"] == 1
    assert facts["settings"]["metrics"] == list(leery.PAPER_METRICS)
    assert facts["calibration"]["fpr"] == 0.05
    assert {"combiner/weights", "kernel_density/0", "kl_divergence/9"} <= names


def changed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    return model


def test_another_classifier_is_refused(detector: Detector) -> None:
    path = save(detector)
    other = pretrained("mnist").model
    other.classify[0].p = 0.25  # type: ignore[index, union-attr]
    for model in (changed(pretrained("mnist").model), other, pretrained("fashion-mnist").model):
        with pytest.raises(WrongModelError, match="expected the classifier that .* was fitted on"):
            Detector.load(path, model)


class Pooling(nn.Module):
    """A parameter called ``p``, as generalised-mean pooling has."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(1))


def test_the_fingerprint_knows_settings_and_not_flags() -> None:
    def pooled(size: int, slope: float) -> nn.Module:
        return nn.Sequential(nn.MaxPool2d(size), nn.LeakyReLU(slope), nn.Dropout(0.5))

    assert fingerprint(pooled(2, 0.1)) == fingerprint(pooled(2, 0.1))
    assert fingerprint(pooled(2, 0.1)) != fingerprint(pooled(3, 0.1))
    assert fingerprint(pooled(2, 0.1)) != fingerprint(pooled(2, 0.2))
    assert fingerprint(Pooling()) == fingerprint(Pooling().requires_grad_(False))


def test_nothing_is_built_on_a_fit_whose_classifier_has_changed(
    digit_net: nn.Module, training_digits: Batch, digits: Batch
) -> None:
    fitted = Detector(digit_net, "hidden", passes=2).fit(*training_digits)
    fitted.fit_combiner(digits[0][:20], digits[0][:20] / 2)
    changed(digit_net)
    for call in ("fit_combiner", "calibrate", "save"):
        with pytest.raises(WrongModelError, match="as it was at the fit, got changed layers or"):
            CALLS[call](fitted, digits[0][:20])


def rewrite(path: Path, edit: Callable[[dict[str, Tensor], dict[str, object]], None]) -> None:
    with safetensors.safe_open(path, framework="pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        facts = json.loads(stream.metadata()["leery"])
    edit(tensors, facts)
    save_file(tensors, path, {"leery": json.dumps(facts)})


EDITS: dict[str, tuple[Callable[[dict[str, Tensor], dict[str, object]], object], str]] = {
    "a future format": (
        lambda _, facts: facts.update(format=2),
        "format 1 or older, got format 2 in .*; upgrade leery",
    ),
    "no settings": (lambda _, facts: facts.pop("settings"), "whole detector file at"),
    "a missing class": (
        lambda tensors, _: tensors.pop("kernel_density/3"),
        r"missing or wrong parts .*kernel_density.*save the detector again",
    ),
    "flat features": (
        lambda tensors, _: tensors.update({"kernel_density/3": torch.zeros(7)}),
        "missing or wrong parts",
    ),
    "no combiner": (lambda tensors, _: tensors.pop("combiner/mean"), "missing or wrong parts"),
    "short weights": (
        lambda tensors, _: tensors.update({"combiner/weights": torch.zeros(2)}),
        "missing or wrong parts",
    ),
    "an unknown metric": (
        lambda _, facts: facts["settings"].update(metrics=["evil"]),  # type: ignore[attr-defined]
        "missing or wrong parts",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_file_with_wrong_parts_is_refused_in_one_sentence(detector: Detector, name: str) -> None:
    path = save(detector)
    edit, text = EDITS[name]
    rewrite(path, edit)  # type: ignore[arg-type]
    with pytest.raises(DetectorFileError, match=text) as caught:
        Detector.load(path, detector.model)
    assert "\n" not in str(caught.value)


def test_a_truncated_foreign_or_missing_file_is_refused(detector: Detector, tmp_path: Path) -> None:
    path = save(detector)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DetectorFileError, match="cannot be read .*save the detector again"):
            Detector.load(path, detector.model)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(DetectorFileError, match="safetensors file without leery's metadata"):
        Detector.load(path, detector.model)
    with pytest.raises(DetectorFileError, match="cannot be read"):
        Detector.load(tmp_path / "none.leery", detector.model)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    detector: Detector, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*/none/guard.leery"):
        detector.save(tmp_path / "none" / "guard.leery")
    assert list(tmp_path.iterdir()) == []
