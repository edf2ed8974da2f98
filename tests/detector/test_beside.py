"""A detector with a sentinel: who may raise how many alarms, the file, what names the sentinel."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leery import Detector
from leery.attacks import PGD
from leery.certify import Sentinel
from leery.classifiers import pretrained
from leery.errors import DetectorFileError, InputError, LeeryWarning, NotFittedError
from leery.inputs import Format
from leery.models import predict
from leery.scoring import score_to_file
from leery.training import SentinelRecipe
from tests.conftest import Batch

RECIPE = SentinelRecipe(
    epsilon=0.1, width=8, hidden=32, epochs=8, batch_size=64, learning_rate=3e-3
)
METRICS = ("max_softmax", "margin")
FPR = 0.04


@pytest.fixture(scope="module")
def detector(digits: Batch, training_digits: Batch) -> Detector:
    """A detector whose fit trained a sentinel, calibrated on the digits 0-2000."""
    model = pretrained("mnist").model
    sentinel = Sentinel(model, recipe=RECIPE)
    made = Detector(model, metrics=METRICS, sentinel=sentinel, sentinel_share=0.25)
    made.fit(training_digits[0][:3000], training_digits[1][:3000])
    assert not sentinel.fitted
    return made.calibrate(digits[0][:2000], digits[1][:2000], fpr=FPR, harmless={})


def known(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


def judged(digits: Batch) -> Batch:
    return digits[0][2000:3000], digits[1][2000:3000]


def test_an_image_is_flagged_by_the_combiner_or_by_the_sentinel(
    detector: Detector, digits: Batch
) -> None:
    images, labels = judged(digits)
    attacked = PGD(0.1, steps=5)(detector.model, images[:200], labels[:200])
    verdicts = detector.judge(torch.cat([images, attacked]))
    combined, sentinel = detector.calibration_, detector.sentinel_
    assert combined is not None
    assert sentinel is not None
    assert sentinel.calibration_ is not None
    assert combined.fpr == pytest.approx(0.75 * FPR)
    assert sentinel.calibration_.fpr == pytest.approx(0.25 * FPR)
    assert detector.fpr_ == pytest.approx(FPR)
    by_combiner = combined.flagged(verdicts.score, verdicts.predicted)
    by_sentinel, flagged = known(verdicts.sentinel_flagged), known(verdicts.adversarial)
    assert np.array_equal(known(verdicts.sentinel), sentinel.score(torch.cat([images, attacked])))
    assert np.array_equal(by_sentinel, sentinel.flag(torch.cat([images, attacked])))
    assert np.array_equal(flagged, by_combiner | by_sentinel)
    # Each sees something that the other does not.
    assert (by_combiner & ~by_sentinel).any()
    assert (by_sentinel & ~by_combiner).any()
    assert np.array_equal(flagged, known(verdicts.p_value) <= FPR)
    right = (predict(detector.model, images) == labels).numpy()
    assert flagged[:1000][right].mean() < 2 * FPR


def test_a_certificate_holds_for_the_verdict_of_the_whole_detector(
    detector: Detector, digits: Batch
) -> None:
    images, labels = judged(digits)
    assert detector.sentinel_ is not None
    certified = torch.from_numpy(detector.sentinel_.certify(images, labels, epsilon=0.05))
    assert certified.sum() > 100
    images, labels = images[certified], labels[certified]
    attacked = PGD(0.05, steps=20)(detector.model, images, labels)
    verdicts = detector.judge(attacked)
    fooled = verdicts.predicted != labels.numpy()
    assert fooled.any()
    assert known(verdicts.adversarial)[fooled].all()


def test_verdicts_and_explanations_name_the_sentinel(detector: Detector, digits: Batch) -> None:
    images, _ = judged(digits)
    verdicts = detector.judge(images[:20])
    frame = verdicts.to_pandas()
    assert list(frame)[4:6] == ["sentinel", "sentinel_flagged"]
    assert verdicts[3].sentinel == frame.sentinel[3]
    reasons = detector.explain(images[:20]).to_pandas()
    own = reasons[reasons.metric == "sentinel"]
    assert own.value.tolist() == frame.sentinel.tolist()
    assert (own.contribution == 0).all()
    assert own.percentile.between(0, 100).all()
    # The most suspicious of many clean images ranks above the least suspicious.
    assert own.percentile[own.value.idxmax()] > own.percentile[own.value.idxmin()]
    sums = reasons.groupby("image").contribution.sum()
    assert np.allclose(sums, verdicts.score)
    assert "with a sentinel, false-alarm rate 0.04" in repr(detector)


def test_a_file_keeps_the_sentinel(detector: Detector, digits: Batch, tmp_path: Path) -> None:
    images, labels = judged(digits)
    detector.save(tmp_path / "guard.leery")
    again = Detector.load(tmp_path / "guard.leery", pretrained("mnist").model)
    first, second = detector.judge(images[:200]), again.judge(images[:200])
    for name in ("sentinel", "sentinel_flagged", "adversarial", "p_value"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert detector.sentinel_ is not None
    assert again.sentinel_ is not None
    certified = again.sentinel_.certify(images, labels, epsilon=0.05)
    assert np.array_equal(certified, detector.sentinel_.certify(images, labels, epsilon=0.05))
    again.save(tmp_path / "again.leery")
    assert (tmp_path / "again.leery").read_bytes() == (tmp_path / "guard.leery").read_bytes()


def test_a_score_file_has_columns_of_the_sentinel(
    detector: Detector, digits: Batch, tmp_path: Path
) -> None:
    images, _ = judged(digits)
    np.save(tmp_path / "some.npy", images[:30].numpy())
    form = Format(shape=(1, 28, 28), dtype=torch.float32)
    score_to_file(detector, "guard", [tmp_path / "some.npy"], form, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet").to_pandas()
    assert table.sentinel.tolist() == detector.judge(images[:30]).to_pandas().sentinel.tolist()
    assert table.sentinel_flagged.dtype == bool


def test_a_sentinel_can_be_added_to_a_fitted_detector(detector: Detector, digits: Batch) -> None:
    plain = Detector(detector.model, metrics=METRICS).fit(
        digits[0][5000:6000], digits[1][5000:6000]
    )
    images, labels = digits[0][:2000], digits[1][:2000]
    plain.calibrate(images, labels, fpr=FPR, harmless={})
    assert detector.sentinel_ is not None
    both = plain.with_sentinel(detector.sentinel_, share=0.5)
    assert (both.calibration_, both.fpr_) == (None, None)
    assert plain.sentinel_ is None
    assert plain.calibration_ is not None
    assert both.judge(images[:5]).sentinel_flagged is None
    with pytest.warns(LeeryWarning, match="1000 that the combiner was fitted to"):
        both.calibrate(images, labels, fpr=FPR, harmless={})
    assert both.fpr_ == pytest.approx(FPR)
    assert both.sentinel_ is not None
    assert both.sentinel_.calibration_ is not None
    # The half that fitted the combiner is left out.
    assert len(both.sentinel_.calibration_.scores) < 1200


def test_training_images_of_an_added_sentinel_are_known_and_kept_from_the_threshold(
    detector: Detector, digits: Batch, training_digits: Batch, tmp_path: Path
) -> None:
    others = training_digits[0][3000:5000], training_digits[1][3000:5000]
    own = Sentinel(detector.model, recipe=replace(RECIPE, epochs=1)).fit(*others)
    plain = Detector(detector.model, metrics=METRICS)
    plain.fit(training_digits[0][:3000], training_digits[1][:3000])
    plain.calibrate(digits[0][:1000], digits[1][:1000], harmless={})
    assert not plain.has_seen(others[0]).any()
    both = plain.with_sentinel(own)
    assert both.has_seen(others[0]).all()
    with pytest.raises(InputError, match="not among the training images, got 2000 of 2000"):
        both.calibrate(*others, fpr=FPR, harmless={})
    both.calibrate(digits[0][1000:3000], digits[1][1000:3000], fpr=FPR, harmless={})
    both.save(tmp_path / "both.leery")
    read = Detector.load(tmp_path / "both.leery", detector.model)
    assert read.has_seen(others[0]).all()
    made = Detector(detector.model, metrics=METRICS, sentinel=own)
    made.fit(training_digits[0][:3000], training_digits[1][:3000])
    assert made.has_seen(others[0]).all()
    assert not made.has_seen(digits[0]).any()


def test_both_thresholds_hold_on_harmless_changes(detector: Detector, digits: Batch) -> None:
    again = Detector(
        detector.model, metrics=METRICS, sentinel=detector.sentinel_, sentinel_share=0.5
    ).fit(digits[0][5000:6000], digits[1][5000:6000])
    again.calibrate(digits[0][:2000], digits[1][:2000], fpr=FPR)
    assert again.calibration_ is not None
    assert again.sentinel_ is not None
    assert again.sentinel_.calibration_ is not None
    assert again.calibration_.kinds == again.sentinel_.calibration_.kinds
    assert len(again.calibration_.kinds) > 3


def test_a_promise_with_confidence_is_shared_too(detector: Detector, digits: Batch) -> None:
    again = Detector(detector.model, metrics=METRICS, sentinel=detector.sentinel_)
    again.fit(digits[0][5000:6000], digits[1][5000:6000])
    again.calibrate(digits[0][:2000], fpr=0.1, promise="pac", confidence=0.9, harmless={})
    assert again.sentinel_ is not None
    for part in (again.calibration_, again.sentinel_.calibration_):
        assert part is not None
        assert part.fpr == pytest.approx(0.05)
        assert part.confidence == pytest.approx(0.95)


def other_classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda one, _: Detector(other_classifier(), sentinel=one.sentinel_),
            InputError,
            "a sentinel of the detector's classifier .Sequential., got one of another .DigitNet.",
        ),
        (
            lambda one, _: Detector(one.model, sentinel=one.sentinel_, sentinel_share=0.0),
            InputError,
            "a sentinel's share of the alarms between 0 and 1, got 0.0",
        ),
        (
            lambda one, _: one.with_sentinel(one.sentinel_, share=1.5),
            InputError,
            "a sentinel's share of the alarms",
        ),
        (
            lambda one, _: one.with_sentinel(Sentinel(one.model)),
            NotFittedError,
            "a sentinel after fit",
        ),
        (
            lambda one, data: Detector(
                one.model, metrics=METRICS, sentinel=Sentinel(one.model)
            ).fit(iter([data])),
            InputError,
            "training data that can be read twice, which the sentinel needs",
        ),
        (
            lambda one, _: one.with_sentinel(
                Sentinel(one.model).restored(
                    one.sentinel_.network_, replace(one.sentinel_.inputs_, bounds=(0.0, 2.0))
                )
            ),
            InputError,
            "a sentinel for images .1, 28, 28. with bounds .0.0, 1.0.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    detector: Detector,
    digits: Batch,
    call: Callable[[Detector, Batch], object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        call(detector, (digits[0][:500], digits[1][:500]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sentinel/network/8.weight", None),
        ("sentinel/network/6.weight", lambda tensor: tensor[:, :-1].contiguous()),
        ("sentinel/calibration/scores", lambda tensor: tensor.float()),
        ("sentinel/calibration/predicted", lambda tensor: tensor + 10),
    ],
)
def test_a_file_with_a_damaged_sentinel_is_refused(
    detector: Detector, tmp_path: Path, name: str, change: Callable[[Tensor], Tensor] | None
) -> None:
    path = tmp_path / "guard.leery"
    detector.save(path)
    with safetensors.safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    assert json.loads(metadata["leery"])["sentinel"]["share"] == 0.25
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata)
    with pytest.raises(DetectorFileError, match="missing or wrong parts"):
        Detector.load(path, detector.model)
