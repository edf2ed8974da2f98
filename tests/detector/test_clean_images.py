"""What calibration asks of clean images: unseen, each once, on the scale of the fit, enough."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from leery import PAPER_METRICS, Detector
from leery._checks import more_than_a_few
from leery.attacks import CORRUPTIONS, FGSM, HARMLESS, gaussian_noise
from leery.errors import InputError, LeeryWarning, NotFittedError, WrongModelError
from leery.models import predict
from tests.conftest import Batch


class Counted(nn.Module):
    """A small classifier that counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2)
        )
        self.shown = [0]

    def forward(self, images: Tensor) -> Tensor:
        self.shown[0] += len(images)
        out: Tensor = self.net(images)
        return out


def pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def detector() -> Detector:
    """Fitted on 80 made-up pictures of two classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Counted().eval()
    return Detector(model, metrics=PAPER_METRICS, passes=3).fit(
        pictures(80, 0), torch.arange(80) % 2
    )


@pytest.fixture
def digits_detector(digit_net: nn.Module, training_digits: Batch) -> Detector:
    metrics = ["kernel_density", "kl_divergence"]
    return Detector(digit_net, metrics=metrics, references=200).fit(*training_digits)


def test_training_images_are_refused_whatever_copy_they_are(detector: Detector) -> None:
    seen = pictures(80, 0)
    # A copy that went through other arithmetic, and one out of a loader.
    other = (seen - 0.45) / 0.27 * 0.27 + 0.45
    assert not torch.equal(other, seen)
    for copied in (seen, other, DataLoader(TensorDataset(seen), 16)):
        with pytest.raises(InputError, match=r"training images, got [78]\d of 80 that are"):
            detector.calibrate(copied, fpr=0.1)
    with pytest.raises(InputError, match="got 80 of 80 that are; pass images held out"):
        detector.fit_combiner(seen)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 3e4])
def test_new_images_are_no_training_images_at_any_scale(detector: Detector, scale: float) -> None:
    found = Detector(detector.model, metrics=PAPER_METRICS, passes=3).fit(
        scale * pictures(80, 0), torch.arange(80) % 2
    )
    found.calibrate(scale * pictures(200, 1), fpr=0.05, harmless={})
    with pytest.raises(InputError, match="got 80 of 80 that are"):
        found.calibrate(scale * pictures(80, 0), fpr=0.05)


def test_where_training_rows_recur_anyway_nothing_follows_from_a_recurrence() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)).eval()
        rows = (torch.rand(600, 5) > 0.5).float()
    detector = Detector(model, metrics=PAPER_METRICS, passes=3).fit(
        rows[:300], torch.arange(300) % 2
    )
    detector.calibrate(rows[300:], fpr=0.05)
    assert detector.calibration_ is not None
    assert len(detector.calibration_.scores) == 150


def test_noisy_images_of_the_combiner_are_remembered_too(detector: Detector) -> None:
    clean, noisy = pictures(100, 1), pictures(100, 2)
    detector.fit_combiner(clean, noisy=noisy)
    with pytest.warns(LeeryWarning, match="100 of 200 .* that the combiner was fitted to"):
        detector.calibrate(torch.cat([noisy, pictures(100, 3)]), fpr=0.05)


def test_nothing_is_run_before_a_refusal_that_needs_no_run(detector: Detector) -> None:
    before = detector.model.shown[0]  # type: ignore[index]
    taught = Detector(detector.model, metrics=PAPER_METRICS, passes=3, combiner="logistic")
    taught.fit(pictures(80, 0), torch.arange(80) % 2)
    fitted = detector.model.shown[0]  # type: ignore[index]
    assert fitted > before
    calls: list[Callable[[], object]] = [
        lambda: detector.calibrate(pictures(80, 0), fpr=0.1),
        lambda: detector.calibrate(pictures(100, 1), fpr=0.02, per_class=True, harmless={}),
        lambda: taught.fit_combiner(pictures(100, 1), attacks=[FGSM(0.1)]),
        lambda: taught.fit_combiner(pictures(100, 1), adversarial=pictures(9, 2)[:, :2]),
    ]
    for call in calls:
        with pytest.raises(InputError):
            call()
    assert detector.model.shown[0] == fitted  # type: ignore[index]


def test_a_few_training_images_and_repeated_ones_are_left_out_with_a_warning(
    detector: Detector,
) -> None:
    clean = pictures(200, 1)
    mixed = torch.cat([clean, pictures(80, 0)[:2], clean[:5]])
    with pytest.warns(LeeryWarning, match="7 of 207 .* left out: 2 training images, 5 repeated"):
        detector.calibrate(mixed, fpr=0.05)
    assert detector.calibration_ is not None
    assert (detector.calibration_.kind == 0).sum() == 100


def test_images_of_the_combiner_are_left_out_and_refused_when_too_few_are_left(
    detector: Detector,
) -> None:
    clean, more = pictures(200, 1), pictures(100, 2)
    detector.fit_combiner(clean)
    with pytest.warns(
        LeeryWarning, match="200 of 300 .* left out: 200 that the combiner was fitted to"
    ):
        detector.calibrate(torch.cat([clean, more]), fpr=0.05)
    with (
        pytest.warns(LeeryWarning, match="200 that the combiner was fitted to"),
        pytest.raises(InputError, match="at least 19 clean images for .* 0.05, got 0"),
    ):
        detector.calibrate(clean, fpr=0.05)
    assert detector.calibration_ is not None


def test_the_file_remembers_what_was_seen(detector: Detector, tmp_path: object) -> None:
    detector.fit_combiner(pictures(100, 1)).save(f"{tmp_path}/g")
    loaded = Detector.load(f"{tmp_path}/g", detector.model)
    with pytest.raises(InputError, match="got 80 of 80 that are"):
        loaded.calibrate(pictures(80, 0), fpr=0.05)
    with pytest.warns(LeeryWarning, match="100 that the combiner was fitted to"):
        loaded.calibrate(torch.cat([pictures(100, 1), pictures(100, 3)]), fpr=0.05)


def test_one_call_divides_the_images_between_combiner_and_threshold(detector: Detector) -> None:
    clean = pictures(200, 1)
    detector.calibrate(clean, fpr=0.05)
    assert detector.calibration_ is not None
    assert detector.calibration_.kinds == ("clean", *HARMLESS)
    assert np.bincount(detector.calibration_.kind).tolist() == [100] * (1 + len(HARMLESS))
    # The half that taught the combiner is known; the other half sets the threshold again.
    with pytest.warns(LeeryWarning, match="100 of 200 .* that the combiner was fitted to"):
        detector.calibrate(clean, fpr=0.05)
    again = Detector(detector.model, metrics=PAPER_METRICS, passes=3).fit(
        pictures(80, 0), torch.arange(80) % 2
    )
    assert np.array_equal(
        again.calibrate(clean, fpr=0.05).score(clean[:9]), detector.score(clean[:9])
    )
    taught = Detector(detector.model, metrics=PAPER_METRICS, passes=3, combiner="logistic")
    taught.fit(pictures(80, 0), torch.arange(80) % 2)
    with pytest.raises(NotFittedError, match=r"after fit_combiner\(clean, adversarial"):
        taught.calibrate(clean, fpr=0.05)


def test_too_few_images_are_refused_before_one_is_run(detector: Detector) -> None:
    before = detector.model.shown[0]  # type: ignore[index]
    loader = DataLoader(TensorDataset(pictures(30, 1)), 10)
    calls: list[Callable[[], object]] = [
        lambda: detector.fit_combiner(pictures(39, 1)),
        lambda: detector.fit_combiner(loader),
        lambda: detector.calibrate(pictures(198, 1), fpr=0.009),
        lambda: detector.calibrate(pictures(78, 1), fpr=0.5),
        lambda: detector.calibrate(loader, fpr=0.01),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"expected at least \d+ .*; add"):
            call()
    assert detector.model.shown[0] == before  # type: ignore[index]


def test_the_rate_holds_among_harmless_changes_too(
    digits_detector: Detector, digits: Batch
) -> None:
    detector, images = digits_detector, digits[0]
    detector.fit_combiner(images[:500]).calibrate(images[1000:3000], fpr=0.05, harmless={})
    noisy = gaussian_noise(images[5000:6000], 0.05, seed=9)
    alone = detector.flag(noisy).mean(), detector.flag(images[5000:6000]).mean()
    detector.calibrate(images[1000:3000], fpr=0.05)
    with_noise = detector.flag(noisy).mean(), detector.flag(images[5000:6000]).mean()
    # Beta(100, 1901) and 1,000 judged: beyond 8 % in fewer than one of a thousand draws.
    assert max(with_noise) < 0.08
    assert all(after <= before for after, before in zip(with_noise, alone, strict=True))
    assert np.array_equal(detector.flag(noisy), detector.p_value(noisy) <= 0.05)


def test_with_labels_the_promise_is_about_images_that_are_classified_right(
    digits_detector: Detector, digits: Batch
) -> None:
    images, labels = digits[0][:1000], digits[1][:1000]
    digits_detector.calibrate(images, labels, fpr=0.05, harmless={})
    found = digits_detector.calibration_
    assert found is not None
    assert found.right_only
    # Of the half that sets the threshold, those that the classifier gets right.
    assert 480 <= len(found.scores) < 500
    loader = DataLoader(TensorDataset(images, labels), 300)
    with pytest.raises(InputError, match="labels as an integer torch.Tensor, got torch.float32"):
        digits_detector.calibrate(images, labels.float(), fpr=0.05)
    with pytest.warns(LeeryWarning, match="500 that the combiner was fitted to"):
        digits_detector.calibrate(loader, fpr=0.05, harmless={})
    again = digits_detector.calibration_
    assert again is not None
    assert np.allclose(np.sort(again.scores), np.sort(found.scores), atol=1e-5)


def test_inputs_on_another_scale_are_refused_or_warned_of(detector: Detector) -> None:
    clean = pictures(200, 1)
    for call in (
        detector.measure,
        detector.fit_combiner,
        lambda x: detector.calibrate(x, fpr=0.05),
    ):
        with pytest.raises(InputError, match=r"bounds 0..1, got .*\.\.25.*; scale the inputs in"):
            call(255 * clean)
    with (
        pytest.warns(LeeryWarning, match=r"another scale .* against .*, 0\.50\d and 0\.289; che"),
        warnings.catch_warnings(),
    ):
        detector.calibrate(clean / 20, fpr=0.05, harmless={})
    normalised = Detector(detector.model, metrics=PAPER_METRICS, passes=3).fit(
        (pictures(80, 0) - 0.5) / 0.29, torch.arange(80) % 2
    )
    assert normalised.inputs_.bounds is None
    with pytest.warns(LeeryWarning, match="check that both are normalised alike"):
        normalised.calibrate(clean / 4, fpr=0.05)
    with pytest.raises(InputError, match=r"range -1.7.*\.\.1.7.*, got 0.*\.\.25"):
        normalised.measure(255 * clean)
    with pytest.raises(InputError, match="bounds of the pixels for harmless changes, got none"):
        normalised.calibrate(clean, fpr=0.05, harmless=HARMLESS)


def test_plain_pixels_for_a_detector_of_normalised_ones_are_warned_of(detector: Detector) -> None:
    plain = pictures(200, 1)
    normalised = Detector(detector.model, metrics=PAPER_METRICS, passes=3).fit(
        2 * pictures(80, 0) - 1, torch.arange(80) % 2
    )
    normalised.calibrate(2 * plain - 1, fpr=0.05)
    with pytest.warns(LeeryWarning, match="the images may be on another scale"):
        normalised.judge(plain[:30])
    with pytest.warns(LeeryWarning, match="the clean images may be on another scale"):
        normalised.calibrate(pictures(200, 3), fpr=0.05)


def test_given_bounds_hold_the_training_images(detector: Detector) -> None:
    narrow = Detector(detector.model, metrics=PAPER_METRICS, passes=3, bounds=(0.45, 0.55))
    with pytest.raises(InputError, match=r"pixels within the bounds \(0.45, 0.55\), got"):
        narrow.fit(pictures(80, 0), torch.arange(80) % 2)
    two = Detector(detector.model, metrics=PAPER_METRICS, passes=3, bounds=((0.0, 1.0), (0.0, 1.0)))
    with pytest.raises(InputError, match="bounds for each channel .*, got 2 pairs"):
        two.fit(pictures(80, 0), torch.arange(80) % 2)


def test_bounds_travel_to_attacks_that_have_none(detector: Detector) -> None:
    wide = Detector(
        detector.model, metrics=PAPER_METRICS, passes=3, combiner="logistic", bounds=(-1, 1)
    )
    wide.fit(2 * pictures(80, 0) - 1, torch.arange(80) % 2)
    clean = 2 * pictures(100, 1) - 1
    seen: list[Tensor] = []

    def spy(_model: nn.Module, images: Tensor, _labels: Tensor, *, seed: int = 0) -> Tensor:
        seen.append(images + seed)
        return images.flip(3)

    wide.fit_combiner(clean, torch.arange(100) % 2, attacks=[FGSM(0.5), spy])
    assert float(seen[0].min()) < -0.9


@pytest.mark.parametrize("change", ["dropout", "data"])
def test_a_classifier_changed_behind_torch_s_back_gets_no_scores(
    change: str, detector: Detector
) -> None:
    detector.fit_combiner(pictures(100, 1))
    if change == "dropout":
        detector.model.get_submodule("net.3").p = 0.9  # type: ignore[assignment]
    else:
        detector.model.get_parameter("net.1.weight").data.neg_()
    with pytest.raises(WrongModelError, match="the classifier as it was at the fit"):
        detector.score(pictures(3, 2))


def test_bounds_are_given_or_seen_and_said(detector: Detector) -> None:
    assert detector.inputs_.bounds == (0.0, 1.0)
    assert "bounds (0.0, 1.0)" in repr(detector)
    per_channel = ((0.0, 1.0), (0.0, 2.0), (-1.0, 1.0))
    given = Detector(detector.model, metrics=PAPER_METRICS, passes=3, bounds=per_channel)
    given.fit(pictures(80, 0), torch.arange(80) % 2)
    assert given.inputs_.bounds == per_channel
    with pytest.raises(InputError, match="low < high, or one such pair per channel, got \\(1, 0"):
        Detector(detector.model, metrics=PAPER_METRICS, bounds=(1, 0))


def test_a_loader_serves_wherever_images_do(detector: Detector) -> None:
    images, labels = pictures(200, 1), torch.arange(200, dtype=torch.int32) % 2
    detector.calibrate(DataLoader(TensorDataset(images, labels), 64), fpr=0.1)
    new = pictures(50, 2)
    batches = DataLoader(TensorDataset(new, labels[:50], labels[:50]), 16)
    for call in (detector.score, detector.p_value, detector.flag):
        assert np.allclose(call(batches), call(new), atol=1e-5)
    assert np.allclose(detector.measure(batches).values, detector.measure(new).values, atol=1e-5)
    assert np.allclose(detector.judge(batches).metrics, detector.judge(new).metrics, atol=1e-5)
    assert len(detector.explain(batches)) == 50

    def once() -> Iterator[Tensor]:
        yield from new.split(20)

    assert np.allclose(detector.score(once()), detector.score(new), atol=1e-5)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((3, 3, 8, 8), np.float32), "iterable of batches such as a DataLoader, got nd"),
        ([{"pixels": torch.zeros(2, 3, 8, 8)}], r"tuple \(images, labels\), got dict"),
        ([], "at least one batch of images, got none"),
        (7, "iterable of batches such as a DataLoader, got int"),
    ],
)
def test_what_is_no_images_is_refused(detector: Detector, images: object, text: str) -> None:
    for call in (detector.measure, detector.fit):
        with pytest.raises(InputError, match=text):
            call(images)  # type: ignore[arg-type]


def test_labels_of_any_whole_type_are_taken(detector: Detector) -> None:
    images = pictures(80, 0)
    for kind in (torch.uint8, torch.uint16, torch.int16, torch.bool):
        labels = (torch.arange(80) % 2).to(kind)
        again = Detector(detector.model, metrics=PAPER_METRICS, passes=3).fit(images, labels)
        assert np.array_equal(again.measure(images[:5]).values, detector.measure(images[:5]).values)


def test_a_label_vector_in_the_place_of_images_is_recognised(detector: Detector) -> None:
    with pytest.raises(InputError, match="looks like labels; pass labels as the second argument"):
        detector.fit_combiner(pictures(100, 1), adversarial=torch.arange(100) % 2)
    with pytest.raises(TypeError, match="positional"):
        detector.fit_combiner(pictures(100, 1), None, pictures(100, 2))  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [2.7, True, -1, "3"])
@pytest.mark.parametrize("setting", ["passes", "seed", "batch_size", "references"])
def test_settings_are_not_cut_to_whole_numbers(
    detector: Detector, setting: str, value: object
) -> None:
    with pytest.raises(InputError, match="whole number of at least"):
        Detector(detector.model, metrics=PAPER_METRICS, **{setting: value})  # type: ignore[arg-type]


def test_other_masks_give_another_detector_with_the_same_threshold(detector: Detector) -> None:
    detector.calibrate(pictures(200, 1), fpr=0.1)
    new = pictures(30, 2)
    other, same = detector.with_masks(7), detector.with_masks(0)
    assert np.array_equal(same.score(new), detector.score(new))
    assert not np.array_equal(other.measure(new).values, detector.measure(new).values)
    assert np.array_equal(other.measure(new).values, detector.with_masks(7).measure(new).values)
    assert other.calibration_ is detector.calibration_
    fresh = detector.with_masks("fresh")
    assert not np.array_equal(fresh.measure(new).values, fresh.measure(new).values)
    density = other.measure(new).column("kernel_density")
    assert np.allclose(density, detector.measure(new).column("kernel_density"))


def test_a_harmless_change_that_fails_or_gives_something_else_is_named(
    detector: Detector,
) -> None:
    clean = pictures(120, seed=7)
    for change, said in (
        (CORRUPTIONS["rotation"], r"harmless change 'own' as a function .* fails .*\['rotation'\]"),
        (lambda images, _seed, _bounds: images[:1], r"from the harmless change 'own', got \(1, "),
    ):
        with pytest.raises(InputError, match=said):
            detector.calibrate(clean, fpr=0.05, harmless={"own": change})  # type: ignore[dict-item]


def test_a_warning_points_at_the_caller_and_verdicts_show_their_table(detector: Detector) -> None:
    clean = torch.cat([pictures(200, 1), pictures(1, 0)])
    with pytest.warns(LeeryWarning, match="1 of 201 .* left out: 1 training image") as caught:
        detector.calibrate(clean, fpr=0.05, harmless={})
    assert [Path(each.filename).name for each in caught] == [Path(__file__).name]
    verdicts = detector.judge(pictures(300, 2))
    assert verdicts.adversarial is not None
    first, *lines = repr(verdicts).splitlines()
    assert first == f"Verdicts(300 inputs, {verdicts.adversarial.sum()} adversarial)"
    assert lines[0].split()[:2] == ["predicted", "score"]
    assert lines[0].split()[-1] == verdicts.names[-1]
    assert len(lines) < 20


def test_halves_for_the_combiner_are_counted_in_what_is_needed(detector: Detector) -> None:
    with pytest.raises(InputError, match="at least 99 clean .* and as many for .* got 150; add"):
        detector.calibrate(pictures(150, 1), fpr=0.01, harmless={})


def test_a_file_keeps_every_setting_of_the_calibration(detector: Detector, tmp_path: Path) -> None:
    clean = pictures(1000, 4)
    labels = predict(detector.model, clean)
    labels[:50] = 1 - labels[:50]
    detector.fit_combiner(pictures(100, 3)).calibrate(
        clean, labels, fpr=0.3, promise="pac", confidence=0.8, per_class=True, harmless={}
    )
    detector.save(tmp_path / "d")
    kept = Detector.load(tmp_path / "d", detector.model).calibration_
    made = detector.calibration_
    assert kept is not None
    assert made is not None
    assert (made.fpr, made.promise, made.confidence) == (0.3, "pac", 0.8)
    assert made.per_class
    assert made.right_only
    for name in made.__dataclass_fields__:
        assert np.array_equal(getattr(kept, name), getattr(made, name)), name


def test_three_images_or_one_in_a_hundred_may_have_been_seen() -> None:
    allowed = {(3, 10): True, (4, 10): False, (6, 600): True, (7, 600): False}
    assert {key: not more_than_a_few(*key) for key in allowed} == allowed
