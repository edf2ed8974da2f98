"""The detector end to end on real digits, its calibration, its file."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import scipy
import torch
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import leery
from leery import PAPER_METRICS, Detector, tuning
from leery.attacks import BIM, FGSM, gaussian_noise
from leery.classifiers import pretrained
from leery.detector import _measuring, describe
from leery.errors import (
    DetectorFileError,
    InputError,
    NoDropoutError,
    NotFittedError,
    OutputError,
    UnknownLayerError,
    UnsupportedModelError,
    WrongModelError,
)
from leery.mc_dropout import MCDropout, Passes, _sampler
from leery.metrics import ClassKL, KernelDensity, predictive_entropy, scibilic
from leery.models import extract_features, fingerprint
from tests.conftest import Batch
from tests.mc_dropout.zoo import build

PASSES = 20


@pytest.fixture(scope="module")
def detector(digits: Batch, training_digits: Batch) -> Detector:
    """Fitted, combined on digits 0-300 and calibrated on digits 1000-1400."""
    model = pretrained("mnist").model
    images, labels = digits
    found = Detector(
        model,
        metrics=PAPER_METRICS,
        feature_layer="hidden",
        passes=PASSES,
        bandwidth=1.7,
        combiner="logistic",
    )
    found.fit(*training_digits)
    adversarial = BIM(0.3)(model, images[:300], labels[:300])
    noisy = gaussian_noise(images[:300], 0.3)
    found.fit_combiner(images[:300], adversarial=adversarial, noisy=noisy)
    return found.calibrate(images[1000:1400], fpr=0.05, harmless={})


@pytest.mark.parametrize("near", [tuning.UNCERTAINTY_ELEMENTS, 7 * PASSES * 10, 1])
def test_the_six_metrics_are_measured_as_each_by_itself(
    near: int,
    detector: Detector,
    digits: Batch,
    training_digits: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_measuring, "UNCERTAINTY_ELEMENTS", near)
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


def test_closeness_is_measured_when_enough_images_have_come_together(
    detector: Detector, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sizes = detector.measure(digits[0][:50]), []
    score = ClassKL.score

    def counted(metric: ClassKL, features: Tensor, classes: Tensor) -> Tensor:
        sizes.append(len(features))
        return score(metric, features, classes)

    monkeypatch.setattr(ClassKL, "score", counted)
    monkeypatch.setattr(_measuring, "CLOSENESS_IMAGES", 20)
    assert detector._observer is not None
    monkeypatch.setattr(detector._observer._sampler, "batch_size", 10)
    cut = detector.measure(digits[0][:50])
    assert sizes == [20, 20, 10]
    assert np.allclose(cut.values, whole.values, atol=1e-4)


def test_strong_attacks_are_found_and_clean_digits_pass(detector: Detector, digits: Batch) -> None:
    images, labels = (part[2000:2400] for part in digits)
    adversarial = BIM(0.3)(detector.model, images, labels)
    # A tenth of the training images is the reference here; the study measures the whole.
    assert detector.flag(adversarial).mean() > 0.75
    # Beta(21, 380) around 5 %: below 8.5 % in all but one of a thousand calibration sets.
    assert detector.flag(images).mean() < 0.085
    assert detector.score(adversarial).mean() > detector.score(images).mean()
    assert detector.flag(images).dtype == bool


@pytest.mark.parametrize("size", [1, 7])
def test_a_score_does_not_depend_on_the_batch(detector: Detector, digits: Batch, size: int) -> None:
    images = digits[0][:64]
    whole = detector.score(images)
    cut = np.concatenate([detector.score(part) for part in images.split(size)])
    # Few images are computed in another way than many, and rounded in another way.
    assert np.abs(cut - whole).max() <= 1e-5


def test_any_metrics_can_be_chosen(digits: Batch, training_digits: Batch) -> None:
    model = pretrained("mnist").model
    names = ("scibilic", "kl_divergence", "aleatoric")
    chosen = Detector(model, feature_layer="hidden", passes=5, metrics=names).fit(*training_digits)
    table = chosen.measure(digits[0][:10])
    assert table.names == names
    expected = scibilic(MCDropout(model, 5).sample(digits[0][:10]))
    assert np.allclose(table.column("scibilic"), expected.numpy(), atol=1e-5)


def test_closeness_alone_needs_no_dropout(digits: Batch, training_digits: Batch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
    found = Detector(
        model, feature_layer="2", metrics=["kernel_density"], bandwidth=1.7, batch_size=4
    )
    found.fit(*training_digits)
    whole = found.measure(digits[0][:10]).column("kernel_density")
    alone = [found.measure(image.unsqueeze(0)).values[0, 0] for image in digits[0][:10]]
    assert np.allclose(whole, alone, atol=1e-6, rtol=0)
    with pytest.raises(NoDropoutError, match="insert_dropout.*metrics that need no dropout"):
        Detector(model, metrics=PAPER_METRICS, feature_layer="2").fit(*training_digits)


def test_calibration_is_the_conformal_threshold_and_repeatable(
    detector: Detector, digits: Batch
) -> None:
    clean = digits[0][1000:1199]
    scores = np.sort(detector.score(clean))
    copy = Detector.load(save(detector), detector.model)
    for fpr, rank in ((0.05, 10), (0.005, 1), (0.5, 100)):
        copy.calibrate(clean, fpr=fpr, harmless={})
        assert copy.flag(clean).sum() == rank - 1
        assert np.array_equal(copy.flag(clean), detector.score(clean) > scores[-rank])


def test_a_rate_that_so_few_images_cannot_support_is_refused(
    detector: Detector, digits: Batch
) -> None:
    copy = Detector.load(save(detector), detector.model)
    with pytest.raises(InputError, match=r"at least 99 clean images .* of 0.01, got 98; add"):
        copy.calibrate(digits[0][2000:2098], fpr=0.01)
    assert copy.calibration_ is not None
    assert copy.calibration_.fpr == 0.05
    copy.calibrate(digits[0][2000:2099], fpr=0.01)
    with pytest.raises(InputError, match=r"between 0 and 1, got nan"):
        copy.calibrate(digits[0][:10], fpr=float("nan"))


def test_p_values_are_the_ranks_among_the_calibration_images(
    detector: Detector, digits: Batch
) -> None:
    held = detector.score(digits[0][1000:1400])
    images = digits[0][1400:1450]
    expected = [(1 + (held >= score).sum()) / 401 for score in detector.score(images)]
    assert np.allclose(detector.p_value(images), expected, atol=1e-12)
    assert np.array_equal(detector.flag(images), detector.p_value(images) <= 0.05)


def test_an_explanation_adds_up_and_knows_the_class(detector: Detector, digits: Batch) -> None:
    images = digits[0][1500:1530]
    found = detector.explain(images)
    verdicts = found.verdicts
    assert len(found) == 30
    assert np.array_equal(verdicts.score, detector.score(images))
    assert np.allclose(verdicts.contributions.sum(1) + found.intercept, verdicts.score)
    assert verdicts.p_value is not None
    assert np.array_equal(verdicts.p_value, detector.p_value(images))
    clean = detector.measure(digits[0][:300])
    for row in (0, 7, 20):
        own = clean.values[clean.predicted == verdicts.predicted[row]]
        for place in range(6):
            value = verdicts.metrics[row, place]
            expected = scipy.stats.percentileofscore(own[:, place], value, kind="mean")
            assert found.percentiles[row, place] == pytest.approx(expected)
    frame = found.to_pandas()
    assert len(frame) == 180
    assert frame.loc[frame["image"] == 3, "metric"].tolist() == list(leery.PAPER_METRICS)
    total = frame["contribution"].iloc[:6].sum() + found.intercept
    assert total == pytest.approx(verdicts.score[0])


def test_a_class_without_clean_images_has_no_percentiles(detector: Detector, digits: Batch) -> None:
    copy = Detector.load(save(detector), detector.model)
    images, labels = digits
    some = images[:400][labels[:400] != 3]
    copy.fit_combiner(some[:100], adversarial=some[:100] / 2)
    found = copy.explain(images[labels == 3][:20])
    threes = found.verdicts.predicted == 3
    assert threes.sum() > 15
    assert np.isnan(found.percentiles[threes]).all()
    assert found.verdicts.p_value is None
    assert found.to_pandas()["p_value"].isna().all()


def test_one_run_gives_all_answers(
    detector: Detector, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, runs = digits[0][2000:2050], []
    stream = MCDropout.stream

    def counted(sampler: MCDropout, shown: Tensor) -> Iterator[Passes]:
        runs.append(len(shown))
        return stream(sampler, shown)

    monkeypatch.setattr(MCDropout, "stream", counted)
    found = detector.judge(images)
    assert runs == [50]
    with torch.no_grad():
        logits = detector.model(images)
    assert np.array_equal(found.predicted, logits.argmax(1).numpy())
    assert np.allclose(found.probabilities, logits.softmax(1).numpy(), atol=1e-5)
    assert np.array_equal(found.score, detector.score(images))
    assert np.array_equal(found.metrics, detector.measure(images).values)
    assert found.adversarial is not None
    assert np.array_equal(found.adversarial, detector.flag(images))
    frame = found.to_pandas()
    assert list(frame.columns) == [
        "predicted", "score", "p_value", "adversarial", *leery.PAPER_METRICS
    ]  # fmt: skip
    row = found[7]
    assert row.score == found.score[7]
    assert row.metrics["kernel_density"] == found.metrics[7, 4]
    assert row.contributions["variance"] == found.contributions[7, 0]
    assert len(list(found)) == 50


def test_before_calibration_there_is_a_score_and_no_verdict(
    detector: Detector, digits: Batch
) -> None:
    copy = Detector.load(save(detector), detector.model)
    copy.fit_combiner(digits[0][:30], adversarial=digits[0][:30] / 2)
    found = copy.judge(digits[0][50:53])
    assert found.p_value is None
    assert found.adversarial is None
    assert found[0].adversarial is None
    assert found.to_pandas()["adversarial"].isna().all()


def test_the_differentiable_score_is_the_score_with_a_gradient(
    detector: Detector, digits: Batch
) -> None:
    images = digits[0][3000:3500]
    variable = images.clone().requires_grad_()
    score = detector.differentiable_score(variable)
    expected = detector.score(images)
    assert np.allclose(score.detach().numpy(), expected, rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad(score.sum(), variable)
    assert bool(gradient.isfinite().all())
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())


def test_the_gradient_of_the_score_equals_finite_differences(digits: Batch) -> None:
    """In float64, where differences are exact to many digits."""
    model = pretrained("mnist").model.double()
    train, labels = digits[0][:600].double(), digits[1][:600]
    detector = Detector(model, metrics=PAPER_METRICS, passes=7, combiner="logistic").fit(
        train, labels
    )
    clean = digits[0][2000:2100].double()
    detector.fit_combiner(clean, digits[1][2000:2100], attacks=[BIM(0.3)])
    generator = torch.Generator().manual_seed(0)
    # On an even background pooling has ties, where there is no derivative.
    images = 0.9 * digits[0][5000:5003].double()
    images = images + 0.1 * torch.rand(images.shape, generator=generator, dtype=torch.float64)
    variable = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detector.differentiable_score(variable).sum(), variable)
    step = 1e-6
    for _ in range(5):
        along = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (detector.score(images + sign * step * along) for sign in (1, -1))
        slope = (ahead - behind) / (2 * step)
        found = (gradient * along).flatten(1).sum(1).numpy()
        assert np.allclose(found, slope, rtol=1e-4, atol=1e-5)


def test_attacks_make_versions_of_images_that_the_classifier_gets_right(
    detector: Detector, digits: Batch
) -> None:
    images, labels = (part[:120] for part in digits)
    labels = torch.cat([labels[:100], (labels[100:] + 1) % 10])
    made = Detector.load(save(detector), detector.model)
    made.fit_combiner(images, labels=labels, attacks=[BIM(0.3), FGSM(0.2)])
    given = Detector.load(save(detector), detector.model)
    right = torch.from_numpy(detector.measure(images).predicted) == labels
    adversarial = [
        attack(detector.model, images[right], labels[right]) for attack in (BIM(0.3), FGSM(0.2))
    ]
    given.fit_combiner(images, adversarial=torch.cat(adversarial))
    assert np.allclose(made.score(images[:30]), given.score(images[:30]), atol=1e-4)
    both = Detector.load(save(detector), detector.model)
    both.fit_combiner(images, labels, adversarial=adversarial[1], attacks=[BIM(0.3)])
    assert np.allclose(both.score(images[:30]), given.score(images[:30]), atol=1e-4)
    with pytest.raises(InputError, match="labels of the clean images for attacks, got None"):
        made.fit_combiner(images, attacks=[BIM(0.3)])
    wrong = (torch.from_numpy(detector.measure(images[:9]).predicted) + 1) % 10
    with pytest.raises(InputError, match="classifier gets right, got none; check the labels"):
        made.fit_combiner(images[:9], labels=wrong, attacks=[BIM(0.3)])


def test_the_conformal_combiner_needs_no_adversarial_image(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    images, labels = digits
    found = Detector(digit_net, metrics=PAPER_METRICS, passes=PASSES, combiner="conformal").fit(
        *training_digits
    )
    assert found.feature_layer_ == "input of classify.1"
    found.fit_combiner(images[:500], noisy=gaussian_noise(images[:500], 0.3))
    found.calibrate(images[500:900], fpr=0.05, harmless={})
    adversarial = BIM(0.3)(digit_net, images[2000:2300], labels[2000:2300])
    clean = images[2000:2300]
    scores = np.concatenate([found.score(clean), found.score(adversarial)])
    assert roc_auc_score(np.arange(600) >= 300, scores) > 0.9
    # Beta(20, 381): below 8.5 % in all but one of a thousand calibration sets.
    assert found.flag(images[2000:2400]).mean() < 0.085
    loaded = Detector.load(save(found), digit_net)
    assert np.array_equal(loaded.score(adversarial[:40]), found.score(adversarial[:40]))
    explained = loaded.explain(adversarial[:40])
    verdicts = explained.verdicts
    assert np.allclose(verdicts.contributions.sum(1), verdicts.score)
    with pytest.raises(InputError, match="no adversarial images and no attacks for the conformal"):
        found.fit_combiner(images[:100], adversarial=adversarial)
    with pytest.raises(InputError, match="at least 40 images that are not adversarial, got 39"):
        found.fit_combiner(images[:39])


def test_the_logistic_combiner_needs_adversarial_images(detector: Detector, digits: Batch) -> None:
    copy = Detector.load(save(detector), detector.model)
    with pytest.raises(InputError, match='got neither; pass some or use combiner="conformal"'):
        copy.fit_combiner(digits[0][:20])


def test_training_batches_give_the_same_detector_as_the_whole(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    loader = DataLoader(TensorDataset(*training_digits), batch_size=700)
    batched = Detector(digit_net, metrics=PAPER_METRICS, passes=3).fit(loader)
    whole = Detector(digit_net, metrics=PAPER_METRICS, passes=3).fit(*training_digits)
    expected = whole.measure(digits[0][:20]).values
    assert np.allclose(batched.measure(digits[0][:20]).values, expected, atol=1e-5)
    with pytest.raises(InputError, match="at least one batch of images, got none"):
        Detector(digit_net, metrics=PAPER_METRICS).fit([])
    with pytest.raises(
        InputError, match=r"labels of the training images, got None; use fit\(images"
    ):
        Detector(digit_net, metrics=PAPER_METRICS).fit(training_digits[0])


def test_the_likeliest_bandwidth_fewer_references_and_half_precision_reach_the_file(
    digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    settings: dict[str, Any] = {
        "metrics": ["kernel_density"],
        "references": 50,
        "precision": "float16",
    }
    fitted = Detector(digit_net, bandwidth="likelihood-per-class", **settings)
    fitted.fit(*training_digits)
    path = save(fitted)
    held = describe(path)["tensors"]
    assert held["metrics/kernel_density/points"] == {"dtype": "F16", "shape": [500, 128]}
    assert held["metrics/kernel_density/bandwidths"] == {"dtype": "F64", "shape": [10]}
    loaded = Detector.load(path, digit_net)
    expected = fitted.measure(digits[0][:20]).values
    assert np.array_equal(loaded.measure(digits[0][:20]).values, expected)


def test_inputs_of_another_kind_than_the_fit_s_are_refused(
    detector: Detector, digits: Batch
) -> None:
    images = digits[0][:3]
    others = (images.byte(), images.double(), images[:, :, 1:], images[0])
    for call in (detector.score, detector.flag, detector.explain, detector.features):
        for other in others:
            kind = re.escape(f"{tuple(other.shape)} of {other.dtype}; convert")
            with pytest.raises(InputError, match=rf"\(N, 1, 28, 28\) of torch.float32, got {kind}"):
                call(other)


class Hidden(nn.Module):
    """A buffer that no state dict has, and a state that is no tensor."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.out = nn.Linear(784, 10)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, _state: object) -> None:
        pass


def test_buffers_outside_the_state_dict_tell_classifiers_apart() -> None:
    model, same, other = Hidden(0.0), Hidden(0.0), Hidden(5.0)
    same.out = other.out = model.out
    assert fingerprint(model) == fingerprint(same)
    assert fingerprint(model) != fingerprint(other)


def test_a_classifier_changed_since_the_fit_gets_no_scores(
    digit_net: nn.Module, digits: Batch
) -> None:
    model = copy.deepcopy(digit_net)
    detector = Detector(
        model, feature_layer="hidden", metrics=["kernel_density"], combiner="conformal"
    )
    images, labels = digits
    detector.fit(images[1000:], labels[1000:]).fit_combiner(images[:100])
    before = detector.score(digits[0][:5])
    with torch.no_grad():
        model.get_parameter("classify.1.bias")[0] += 1
    with pytest.raises(WrongModelError, match="as it was at the fit, got changed layers or"):
        detector.score(digits[0][:5])
    with torch.no_grad():
        model.get_parameter("classify.1.bias").copy_(digit_net.get_parameter("classify.1.bias"))
    assert np.array_equal(detector.score(digits[0][:5]), before)


def test_a_detector_of_tokens_out_of_a_file_has_a_plan() -> None:
    model = build("text")
    tokens = torch.randint(1, 50, (120, 15), generator=torch.Generator().manual_seed(0))
    detector = Detector(model, metrics=PAPER_METRICS, passes=2).fit(
        tokens[:60], torch.arange(60) % 4
    )
    loaded = Detector.load(save(detector.fit_combiner(tokens[60:])), model)
    assert loaded.explain_plan().way == detector.explain_plan().way
    assert np.array_equal(loaded.score(tokens[:5]), detector.score(tokens[:5]))


def test_a_model_that_returns_probabilities_is_refused(digits: Batch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10), nn.Softmax(1))
    with pytest.raises(
        UnsupportedModelError, match="got one that returns probabilities; remove its softmax"
    ):
        Detector(model, metrics=PAPER_METRICS, passes=2).fit(*digits)


def test_it_says_which_classifier_it_is_for_and_how_right_that_is(
    digit_net: nn.Module, digits: Batch
) -> None:
    detector = Detector(
        digit_net, feature_layer="hidden", metrics=["kernel_density"], combiner="conformal"
    )
    assert repr(detector) == "Detector(DigitNet: not fitted)"
    images, labels = (part[1000:] for part in digits)
    detector.fit(images, labels)
    right = digit_net(images).argmax(1) == labels
    assert detector.accuracy_ == float(right.double().mean())
    known = "inputs (1, 28, 28) of float32, bounds (0.0, 1.0), training range 0..1"
    assert repr(detector) == f"Detector(DigitNet: fitted, {known}, features 'hidden')"
    detector.fit_combiner(digits[0][:100]).calibrate(digits[0][100:200])
    assert repr(detector).endswith("'hidden', conformal combiner, false-alarm rate 0.05)")


def test_the_plan_can_be_asked_of_a_loaded_detector(detector: Detector) -> None:
    plan = Detector.load(save(detector), detector.model).explain_plan()
    assert (plan.way, plan.layers) == ("graph", ("hidden",))
    assert [layer.kind for layer in plan.stochastic] == ["Dropout", "Dropout"]
    alone = Detector(detector.model, metrics=["kernel_density"])
    with pytest.raises(NotFittedError, match="after fit"):
        alone.explain_plan()
    alone.fit(torch.rand(40, 1, 28, 28), torch.arange(40) % 10)
    text = "way: once (one forward pass, because no metric reads dropout passes)"
    assert str(alone.explain_plan()).startswith(text)


def test_a_fit_that_fails_leaves_the_old_one_whole(detector: Detector, digits: Batch) -> None:
    copy = Detector.load(save(detector), detector.model)
    before = copy.score(digits[0][:20])
    zeros = torch.zeros(50, dtype=torch.int64)
    for bad in (digits[0][:50, :, :14], digits[0][:50]):
        with pytest.raises(InputError, match="that the model accepts|got none of"):
            copy.fit(bad, zeros)
        # The second batch fits, and is found to lack classes only at the end.
        assert copy.accuracy_ is None
        assert copy.inputs_ == detector.inputs_
        assert np.array_equal(copy.score(digits[0][:20]), before)


def test_a_classifier_in_bfloat16_has_a_detector_too(digits: Batch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 9), nn.Dropout(0.3), nn.Linear(9, 10))
    images = digits[0][:300].bfloat16()
    fitted = Detector(model.bfloat16().eval(), metrics=PAPER_METRICS, passes=np.int64(3))  # type: ignore[arg-type]
    fitted.fit(images, digits[1][:300])
    fitted.calibrate(digits[0][300:500].bfloat16(), fpr=np.float32(0.05))  # type: ignore[arg-type]
    loaded = Detector.load(save(fitted), model)
    assert np.array_equal(loaded.score(images[:9]), fitted.score(images[:9]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_a_compiled_classifier_is_the_classifier_inside(detector: Detector, digits: Batch) -> None:
    compiled: Any = torch.compile(detector.model)
    loaded = Detector.load(save(detector), compiled)
    expected = detector.score(digits[0][:10])
    assert np.array_equal(loaded.score(digits[0][:10]), expected)
    with pytest.raises(InputError, match="torch.nn.Module as classifier, got function"):
        Detector(lambda images: images, metrics=PAPER_METRICS)  # type: ignore[arg-type]


CALLS: dict[str, Callable[[Detector, Tensor], object]] = {
    "measure": lambda d, x: d.measure(x),
    "fit_combiner": lambda d, x: d.fit_combiner(x, adversarial=x),
    "score": lambda d, x: d.score(x),
    "calibrate": lambda d, x: d.calibrate(x),
    "judge": lambda d, x: d.judge(x),
    "flag": lambda d, x: d.flag(x),
    "p_value": lambda d, x: d.p_value(x),
    "explain": lambda d, x: d.explain(x),
    "features": lambda d, x: d.features(x),
    "save": lambda d, _: d.save("/nowhere/d"),
}


@pytest.mark.parametrize("name", CALLS)
def test_everything_used_before_it_is_fitted_says_what_to_call_first(
    name: str, digit_net: nn.Module, digits: Batch, training_digits: Batch
) -> None:
    fresh = Detector(
        digit_net, metrics=PAPER_METRICS, feature_layer="hidden", passes=2, combiner="logistic"
    )
    with pytest.raises(SklearnNotFittedError, match=r"after (fit|fit_combiner|calibrate)\("):
        CALLS[name](fresh, digits[0][:5])
    if name in ("judge", "score", "calibrate", "flag", "p_value", "explain"):
        fresh.fit(*training_digits)
        with pytest.raises(NotFittedError, match=r"after (fit_combiner|calibrate)\("):
            CALLS[name](fresh, digits[0][:5])


def test_fitting_again_forgets_what_was_built_on_the_old_fit(
    detector: Detector, training_digits: Batch, digits: Batch
) -> None:
    copy = Detector.load(save(detector), detector.model)
    copy.fit_combiner(digits[0][:20], adversarial=digits[0][:20] * 0.5)
    with pytest.raises(NotFittedError, match="after calibrate"):
        copy.flag(digits[0][:5])
    copy.fit(*training_digits)
    with pytest.raises(NotFittedError, match="after fit_combiner"):
        copy.score(digits[0][:5])


def test_bad_training_data_is_refused(digit_net: nn.Module, training_digits: Batch) -> None:
    images, labels = (part[:200] for part in training_digits)
    fresh = Detector(digit_net, metrics=PAPER_METRICS, feature_layer="hidden", passes=2)
    with pytest.raises(InputError, match=r"labels to be 0..9, got 0..10"):
        fresh.fit(images, labels + (labels == 9))
    with pytest.raises(InputError, match=r"all 10 classes, got none of \[3\]; add some"):
        fresh.fit(images[labels != 3], labels[labels != 3])
    with pytest.raises(InputError, match="got an empty batch"):
        fresh.fit(images[:0], labels[:0])
    with pytest.raises(InputError, match="NaN or infinity in 200 of 200"):
        fresh.fit(images * torch.nan, labels)
    with pytest.raises(InputError, match=r"images that the model accepts, got shape \(8, 1, 9, 9"):
        fresh.fit(images[:, :, :9, :9], labels)
    with pytest.raises(InputError, match="torch.float64, which it rejects"):
        fresh.fit(images.double(), labels)
    with pytest.raises(NotFittedError):
        fresh.measure(images)


def test_impossible_settings_are_refused_with_the_possible_ones(digit_net: nn.Module) -> None:
    with pytest.raises(UnknownLayerError, match="got 'logits'; the model has: convolutions, .*hid"):
        Detector(digit_net, metrics=PAPER_METRICS, feature_layer="logits")
    with pytest.raises(
        InputError,
        match=r"names of metrics or .*, got 'entropy'; the names are auxiliary_agreement, ",
    ):
        Detector(digit_net, feature_layer="hidden", metrics=["entropy"])
    for names, text in (([], "got none; the names"), (["variance"] * 2, "got variance more than")):
        with pytest.raises(InputError, match=text):
            Detector(digit_net, feature_layer="hidden", metrics=names)
    with pytest.raises(InputError, match="bandwidth from 1e-100 .*, got 0;"):
        Detector(digit_net, metrics=PAPER_METRICS, feature_layer="hidden", bandwidth=0)
    with pytest.raises(InputError, match='"conformal" or "logistic", got \'svm\'; choose one'):
        Detector(digit_net, metrics=PAPER_METRICS, combiner="svm")  # type: ignore[arg-type]


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
from leery import Detector, tuning
from leery.classifiers import pretrained
from leery.models import fingerprint
from leery.data import load
detector = Detector.load(sys.argv[1], pretrained("mnist").model)
images = load("mnist", "test")[0][:50]
numpy.savez(sys.argv[2], score=detector.score(images), verdict=detector.flag(images))
"""


def test_a_loaded_detector_scores_bit_equal_in_a_new_process(
    detector: Detector, digits: Batch, tmp_path: Path
) -> None:
    path, out = save(detector), tmp_path / "scores.npz"
    subprocess.run([sys.executable, "-c", SCORE_ELSEWHERE, str(path), str(out)], check=True)
    with np.load(out) as found:
        assert np.array_equal(found["score"], detector.score(digits[0][:50]))
        assert np.array_equal(found["verdict"], detector.flag(digits[0][:50]))


def test_a_detector_without_combiner_can_be_saved(
    digit_net: nn.Module, training_digits: Batch, digits: Batch
) -> None:
    fitted = Detector(
        digit_net, metrics=PAPER_METRICS, feature_layer="hidden", passes=3, bandwidth=0.9
    ).fit(*training_digits)
    loaded = Detector.load(save(fitted), digit_net)
    expected = fitted.measure(digits[0][:9]).values
    assert np.array_equal(loaded.measure(digits[0][:9]).values, expected)
    with pytest.raises(NotFittedError):
        loaded.score(digits[0][:9])


def test_the_file_is_plain_safetensors_with_json(detector: Detector) -> None:
    with safetensors.safe_open(save(detector), framework="pt") as stream:
        facts = json.loads(stream.metadata()["leery"])
        names = set(stream.keys())
    assert facts["format"] == 3
    assert [metric["name"] for metric in facts["metrics"]] == list(leery.PAPER_METRICS)
    assert facts["calibration"]["fpr"] == 0.05
    assert {
        "combiner/weights",
        "metrics/kernel_density/points",
        "metrics/kl_divergence/means",
    } <= names


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


def test_the_fingerprint_does_not_depend_on_strides() -> None:
    dense, expanded = nn.Module(), nn.Module()
    dense.register_buffer("scale", torch.ones(1, 1, 1))
    expanded.register_buffer("scale", torch.ones(1).as_strided((1, 1, 1), (0, 0, 0)))
    assert fingerprint(dense) == fingerprint(expanded)


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
    fitted = Detector(
        digit_net, metrics=PAPER_METRICS, feature_layer="hidden", passes=2, combiner="logistic"
    )
    fitted.fit(*training_digits)
    fitted.fit_combiner(digits[0][:20], adversarial=digits[0][:20] / 2)
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
        lambda _, facts: facts.update(format=4),
        "format 3, got format 4 in .*: upgrade leery",
    ),
    "an earlier format": (
        lambda _, facts: facts.update(format=2),
        "format 3, got format 2 in .*; fit it again",
    ),
    "a format without end": (
        lambda _, facts: facts.update(format=float("inf")),
        "got a safetensors file without leery's metadata",
    ),
    "too many classes": (
        lambda _, facts: facts.update(classes=10**12),
        "got one for 1000000000000 classes",
    ),
    "inputs without end": (
        lambda _, facts: facts["inputs"].update(shape=[10**6, 10**6]),  # type: ignore[attr-defined]
        r"no inputs of shape \[1000000, 1000000\]",
    ),
    "no settings": (lambda _, facts: facts.pop("settings"), "got facts with missing .*settings"),
    "a layer that is no text": (
        lambda _, facts: facts["layers"].update(head=7),  # type: ignore[attr-defined]
        "got layers with missing or wrong parts .head.; save the detector again",
    ),
    "too many passes": (
        lambda _, facts: facts["settings"].update(passes=10**12),  # type: ignore[attr-defined]
        "expected 1 to 10000 passes, got 1000000000000",
    ),
    "a calibration of too few": (
        lambda _, facts: facts["calibration"].update(fpr=1e-9),  # type: ignore[attr-defined]
        "at least 999999999 clean images",
    ),
    "scores that are not finite": (
        lambda tensors, _: tensors["calibration/scores"].fill_(torch.nan),
        "a finite score for each calibration image, got others",
    ),
    "scores of images and more": (
        lambda tensors, _: tensors.update({"calibration/scores": torch.zeros(200, 2).double()}),
        r"arrays of a calibration, got .*'scores': \('float64', 2\)",
    ),
    "classes that are no whole numbers": (
        lambda tensors, _: tensors.update({"clean/predicted": torch.zeros(1)}),
        "and classes of",
    ),
    "complex inputs": (
        lambda _, facts: facts["inputs"].update(dtype="complex64"),  # type: ignore[attr-defined]
        "no inputs of shape .* and type 'complex64'",
    ),
    "features that are not finite": (
        lambda tensors, _: tensors["metrics/kernel_density/points"].fill_(torch.inf),
        "finite features, got NaN or infinity",
    ),
    "whole numbers for features": (
        lambda tensors, _: tensors.update(
            {"metrics/kernel_density/points": torch.zeros(7, 128).long()}
        ),
        "floating-point torch.Tensor, got torch.int64",
    ),
    "features that are not counted": (
        lambda tensors, _: tensors.update({"metrics/kernel_density/points": torch.zeros(7, 128)}),
        "InputError: expected class counts of kernel_density that sum to 7, got",
    ),
    "means that are flat": (
        lambda tensors, _: tensors.update({"metrics/kl_divergence/means": torch.ones(5).double()}),
        r"expected means \(classes, D\)",
    ),
    "a missing class": (
        lambda tensors, _: tensors["metrics/kl_divergence/means"][3].fill_(torch.nan),
        r"missing or wrong parts .*kl_divergence of 10 classes, got \[0, 1, 2, 4",
    ),
    "flat features": (
        lambda tensors, _: tensors.update({"metrics/kernel_density/points": torch.zeros(7)}),
        "missing or wrong parts",
    ),
    "no hashes": (lambda tensors, _: tensors.pop("seen/fit"), "missing or wrong parts .*seen/fit"),
    "a kind that is none": (
        lambda tensors, _: tensors["calibration/kind"].fill_(5),
        "a known kind for each calibration image, got others",
    ),
    "no combiner": (lambda tensors, _: tensors.pop("combiner/weights"), "missing or wrong parts"),
    "short weights": (
        lambda tensors, _: tensors.update({"combiner/weights": torch.zeros(2)}),
        "missing or wrong parts",
    ),
    "an unknown metric": (
        lambda _, facts: facts["metrics"][0].update(kind="os:system"),  # type: ignore[index]
        r"instance of the custom metric 'variance' .os:system., got none; pass metrics=",
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
    with pytest.raises(DetectorFileError, match=r"none\.leery, got none; correct the path"):
        Detector.load(tmp_path / "none.leery", detector.model)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    detector: Detector, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"expected to write .*/none/guard.leery"):
        detector.save(tmp_path / "none" / "guard.leery")
    assert list(tmp_path.iterdir()) == []


def test_a_warm_detector_has_its_graph_before_its_first_image(
    digit_net: nn.Module, training_digits: Batch, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = (part[:500] for part in training_digits)
    fitted = Detector(digit_net, metrics=("variance",), passes=3).fit(images, labels)
    expected = fitted.measure(digits[0][:3]).values
    with pytest.raises(InputError, match="images as a whole number of at least 1, got 0"):
        fitted.warm_up(0)
    fresh = copy.deepcopy(fitted)
    assert fresh.warm_up(3) is fresh
    # Nothing is captured any more.
    monkeypatch.delattr(_sampler, "capture")
    assert np.array_equal(fresh.measure(digits[0][:3]).values, expected)
    with pytest.raises(NameError, match="capture"):
        copy.deepcopy(fitted).measure(digits[0][:3])
    with pytest.raises(NotFittedError, match=r"fit\(images, labels\)"):
        Detector(digit_net).warm_up()


def test_a_verdict_before_the_fit_names_the_fit_and_before_calibration_that(
    digit_net: nn.Module, training_digits: Batch, digits: Batch
) -> None:
    detector = Detector(digit_net, metrics=("log_margin",))
    with pytest.raises(
        NotFittedError, match=r"after fit\(images, labels\), got one without this step"
    ):
        detector.judge(digits[0][:3])
    detector.fit(*training_digits)
    with pytest.raises(
        NotFittedError, match=r"after calibrate\(clean, fpr=...\), got one without this"
    ):
        detector.judge(digits[0][:3])
