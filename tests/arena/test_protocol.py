"""The arena's protocol: what a detector is fitted to, judged on and kept from."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leery.arena import ArenaConfig
from leery.arena._attack_stage import run_attack
from leery.arena._classifier_stage import make_classifier, predict_all
from leery.arena._config import Cell
from leery.arena._default import DefaultDetector
from leery.arena._detectors import Entry
from leery.arena._gather import _cells, _Scored
from leery.arena._score_stage import score_detector
from leery.arena._workspace import CHANGES, FRESH_CHANGES, Workspace, error_file
from leery.baselines import LayerMahalanobis
from leery.calibration import Calibration
from leery.detector import Detector, MetricTable
from leery.models import predict

Labelled = tuple[Tensor, Tensor]

CODES = {"fast": 0.1, "faster": 0.2, "small": 0.3, "sparse": 0.4}
"""The value of the first pixel of each attack's images, by which they are recognised."""

FAMILIES = {"fast": "single step", "faster": "single step", "small": "smallest", "sparse": "other"}
LEARNED = ("fast", "small", "sparse")


@dataclass(frozen=True)
class Inverted:
    """An attack that inverts images and marks them, and by its seed the second pixel."""

    code: float

    def __call__(
        self, _model: nn.Module, images: Tensor, _labels: Tensor, *, seed: int = 0
    ) -> Tensor:
        made = 1 - images
        made[:, 0, 0, 0], made[:, 0, 0, 1] = self.code, seed / 100
        return made


class Recorder:
    """A detector that learns from attacks and writes down what it was given."""

    differentiable = False
    learns_from_attacks = True
    fits: list["Recorder"] = []  # noqa: RUF012 - of all recorders

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.earlier = getattr(model, "earlier_attacks", 0)

    def fit(
        self, train: Labelled, clean: Labelled, attacks: Sequence[Callable[..., Tensor]] = ()
    ) -> "Recorder":
        self.train, self.clean = train, clean
        made = [attack(self.model, *clean) for attack in attacks]
        self.codes = sorted(round(float(images[0, 0, 0, 0]), 2) for images in made)
        self.model.earlier_attacks = self.earlier + len(attacks)  # type: ignore[assignment]
        Recorder.fits.append(self)
        # What other detectors must not notice.
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return self

    def score(self, images: Tensor) -> np.ndarray:
        return images.flatten(1).double().mean(1).numpy() + sum(self.codes)


class FailsLater(Recorder):
    """Gives no number after it has learned from two attacks."""

    def score(self, images: Tensor) -> np.ndarray:
        found = super().score(images)
        return found / 0 if len(self.codes) == 2 else found


class Ends(Recorder):
    """Ends the program."""

    def score(self, images: Tensor) -> np.ndarray:
        del images
        sys.exit(0)


class Unspeakable(Recorder):
    """Raises an error whose text cannot be encoded."""

    def score(self, images: Tensor) -> np.ndarray:
        raise MemoryError("\ud800 [/x]" + " " * len(images))


class Mine(LayerMahalanobis):
    """A user's own version of a baseline, which is fitted anew each time."""

    fitted = 0

    def fit(
        self,
        train: Labelled,
        clean: Labelled | None = None,
        attacks: Sequence[Callable[..., Tensor]] = (),
    ) -> "Mine":
        Mine.fitted += 1
        super().fit(train, clean, attacks)
        return self


class Differentiates:
    """A detector that needs gradients."""

    differentiable = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def fit(self, *_given: object) -> "Differentiates":
        weight = torch.ones(1, requires_grad=True)
        (2 * weight).backward()
        assert weight.dtype == torch.float32
        return self

    def score(self, images: Tensor) -> np.ndarray:
        return np.zeros(len(images))

    def differentiable_score(self, images: Tensor) -> Tensor:
        return 0 * images.flatten(1).double().sum(1)


class Bright:
    """Flags bright images, and tells nobody how bright they are."""

    differentiable = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def fit(self, *_given: object) -> "Bright":
        return self

    def score(self, images: Tensor) -> np.ndarray:
        return np.asarray(images.flatten(1).double().mean(1))


class Sighted(Bright):
    """The same with a gradient, and a proof for every other image."""

    differentiable = True

    def differentiable_score(self, images: Tensor) -> Tensor:
        return images.flatten(1).double().mean(1)

    def certify(
        self, images: Tensor, labels: Tensor, calibration: Calibration, *, epsilon: float
    ) -> np.ndarray:
        assert len(images) == len(labels)
        assert epsilon == 0.3
        # The threshold of the arena: few of the clean images are flagged.
        assert calibration.fpr == 0.01
        flagged = calibration.flagged(self.score(images), np.zeros(len(images), dtype=np.int64))
        assert flagged.mean() < 0.1
        found: np.ndarray = np.arange(len(images)) % 2 == 0
        return found


def undeclared(model: nn.Module) -> Recorder:
    """A function that does not say that its detector learns from attacks."""
    return Recorder(model)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    Recorder.fits.clear()
    Mine.fitted = 0
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training_digits: Labelled
) -> Workspace:
    """An arena of four attacks that take no time, made up to the detectors."""
    cells = {name: Cell(Inverted(code), FAMILIES[name], 0.01) for name, code in CODES.items()}
    cells["sparse"] = replace(cells["sparse"], slow=True)
    monkeypatch.setattr("leery.arena._config.ARENAS", {"mnist": cells})
    monkeypatch.setattr("leery.arena._config.TRAINING_ATTACKS", {"mnist": LEARNED})
    monkeypatch.setattr("leery.arena._adaptive.STEPS", 10)
    monkeypatch.setattr("leery.arena._adaptive.QUERIES", 3)
    monkeypatch.setattr("leery.arena._adaptive.ADAPTIVE_IMAGES", 20)
    few = training_digits[0][:600], training_digits[1][:600]
    monkeypatch.setattr(Workspace, "train", lambda _self: few)
    made = Workspace(ArenaConfig("mnist", limit=120), tmp_path / "parts")
    make_classifier(made)
    predict_all(made)
    for cell in cells:
        for part in range(len(made.attack_files(cell, "judging"))):
            run_attack(made, cell, "judging", part)
    for cell in LEARNED:
        run_attack(made, cell, "training", 0)
    return made


def entry(kind: Callable[..., object]) -> Entry:
    return Entry(kind.__name__, f"{kind.__module__}:{kind.__name__}")


def scores(workspace: Workspace, kind: Callable[..., object]) -> dict[str, np.ndarray]:
    path = workspace.scores_file(entry(kind))
    score_detector(workspace, entry(kind), path)
    with np.load(path) as found:
        return dict(found)


def test_each_training_sees_its_own_attacks_and_nothing_of_the_others(workspace: Workspace) -> None:
    found = scores(workspace, Recorder)
    trainings = {
        **{name: [name] for name in LEARNED},
        "all": list(LEARNED),
        "without single step": ["small", "sparse"],
        "without smallest": ["fast", "sparse"],
        "without other": ["fast", "small"],
    }
    expected = [sorted(CODES[name] for name in names) for names in trainings.values()]
    assert [one.codes for one in Recorder.fits] == expected
    # Neither the detector nor the classifier is one that has seen attacks before.
    assert [one.earlier for one in Recorder.fits] == [0] * 7
    split = workspace.split()
    for one in Recorder.fits:
        assert torch.equal(one.clean[0], split.clean[0])
        assert torch.equal(one.train[0], workspace.train()[0])
    attacked = workspace.adversarial("faster", "judging")["images"]
    for name, names in trainings.items():
        learned = sum(sorted(CODES[one] for one in names))
        own = attacked.flatten(1).double().mean(1).numpy() + learned
        assert np.array_equal(found[f"{name}|attack|faster"], own)


def test_each_attack_is_judged_after_a_training_without_its_kind(workspace: Workspace) -> None:
    made = _Scored(workspace, entry(Recorder), scores(workspace, Recorder))
    expected = {
        "fast": "without single step",
        "faster": "without single step",
        "small": "without smallest",
        "sparse": "without other",
    }
    rows = [row for row in _cells(made) if row["unseen"] and row["positives"] == "all"]
    assert {row["attack"]: row["trained_on"] for row in rows} == expected
    assert {cell: made.trained_without(cell) for cell in CODES} == expected
    calm = _Scored(workspace, entry(Differentiates), scores(workspace, Differentiates))
    assert {row["trained_on"] for row in _cells(calm)} == {""}


def test_attackers_who_know_a_detector_use_its_gradient_where_there_is_one(
    workspace: Workspace,
) -> None:
    blind, sighted = scores(workspace, Bright), scores(workspace, Sighted)
    for found, known in ((blind, False), (sighted, True)):
        assert found["|evaded"].shape == found["|certified"].shape == (20,)
        assert found["|with gradients"].tolist() == [known]
    assert sighted["|evaded"].mean() > 0.9
    assert blind["|evaded"].mean() < sighted["|evaded"].mean()
    assert sighted["|certified"].mean() == 0.5
    assert not blind["|certified"].any()


def test_thresholds_are_set_on_other_images_than_those_that_are_judged(
    workspace: Workspace,
) -> None:
    split, sets = workspace.split(), dict(workspace.changed())
    uses = {"threshold": (split.threshold, CHANGES), "fresh": (split.fresh, FRESH_CHANGES)}
    names = [f"{use}|{kind}" for use, (_, kinds) in uses.items() for kind in ("clean", *kinds)]
    assert list(sets) == names
    for use, ((images, _), kinds) in uses.items():
        assert torch.equal(sets[f"{use}|clean"], images)
        for kind in kinds:
            changed = sets[f"{use}|{kind}"]
            assert changed.shape == images.shape
            assert float((changed - images).abs().mean()) < 0.2
            assert not torch.equal(changed, images)


@pytest.mark.slow
def test_a_detector_of_one_s_own_is_fitted_anew_and_the_short_way_gives_the_same(
    workspace: Workspace,
) -> None:
    own, short = scores(workspace, Mine), scores(workspace, LayerMahalanobis)
    assert Mine.fitted == 7
    assert own.keys() == short.keys()
    for name, found in own.items():
        assert np.allclose(found, short[name], atol=1e-9), name
    trained = [short[f"{name}|attack|small"] for name in ("fast", "small", "all")]
    assert not np.allclose(trained[0], trained[1])
    assert not np.allclose(trained[1], trained[2])


def test_scores_after_a_later_training_that_are_not_numbers_are_an_error(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, score_of = LayerMahalanobis.learn, LayerMahalanobis.score_of
    trainings: list[int] = []

    def noted(self: LayerMahalanobis, *given: Any) -> LayerMahalanobis:
        trainings.append(1)
        return learn(self, *given)

    def spoiled(self: LayerMahalanobis, table: MetricTable) -> np.ndarray:
        found = score_of(self, table)
        return found * np.nan if len(trainings) > 1 else found

    monkeypatch.setattr(LayerMahalanobis, "learn", noted)
    monkeypatch.setattr(LayerMahalanobis, "score_of", spoiled)
    path = workspace.scores_file(entry(LayerMahalanobis))
    score_detector(workspace, entry(LayerMahalanobis), path)
    assert not path.exists()
    assert "finite scores" in error_file(path).read_text()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FailsLater, "finite scores"),
        (Ends, "SystemExit: 0"),
        (Unspeakable, r"MemoryError: \\ud800 \[/x\]"),
        (undeclared, "undeclared.learns_from_attacks = True"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_goes_wrong_in_a_detector_is_its_own_error(
    workspace: Workspace, kind: Callable[..., object], error: str
) -> None:
    path = workspace.scores_file(entry(kind))
    score_detector(workspace, entry(kind), path)
    assert not path.exists()
    assert re.search(error, error_file(path).read_text())


def test_what_a_detector_switches_off_is_on_for_the_next(workspace: Workspace) -> None:
    scores(workspace, Recorder)
    assert not torch.is_grad_enabled()
    assert scores(workspace, Differentiates)["|attack|fast"].shape == (120,)


def test_seeds_of_any_size_serve_numpy_s_generator(workspace: Workspace) -> None:
    large = replace(workspace, config=replace(workspace.config, seed=2**40))
    make_classifier(large)
    path = large.scores_file(entry(Ends))
    for cell in LEARNED:
        run_attack(large, cell, "training", 0)
    score_detector(large, entry(Ends), path)
    assert "SystemExit" in error_file(path).read_text()


def test_parts_of_a_slow_attack_have_seeds_of_their_own(workspace: Workspace) -> None:
    images = workspace.adversarial("sparse", "judging")["images"]
    seeds = (100 * images[:, 0, 0, 1]).round().tolist()
    assert seeds == [0] * 50 + [1] * 50 + [2] * 20
    success = workspace.adversarial("sparse", "judging")["success"]
    labels = workspace.split().attacked[1]
    assert torch.equal(success, predict(workspace.classifier().model, images) != labels)


def test_parts_have_other_names_when_anything_that_they_depend_on_changes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(config: ArenaConfig, kind: Entry) -> tuple[str, str, str]:
        made = Workspace(config, workspace.folder)
        return (
            made.attack_id("small", "judging"),
            made.attack_id("small", "training"),
            made.detector_id(kind),
        )

    config, own = workspace.config, entry(Recorder)
    before = names(config, own)
    assert names(config, own) == before
    # A seed changes all; more images change what is judged and not what is learned from.
    assert not set(names(replace(config, seed=1), own)) & set(before)
    more = names(replace(config, limit=121), own)
    assert [one == other for one, other in zip(more, before, strict=True)] == [False, True, False]
    # Another detector, other settings or another source change the scores alone.
    for other in (entry(Ends), replace(own, settings={"k": 1})):
        found = names(config, other)
        assert found[:2] == before[:2]
        assert found[2] != before[2]
    with monkeypatch.context() as changed:
        changed.setattr(Entry, "source", "another")
        assert names(config, own)[2] != before[2]
    # Another strength of one attack changes it, and all scores.
    cells = dict(config.cells) | {"small": Cell(Inverted(0.31), "smallest", 0.01)}
    monkeypatch.setattr("leery.arena._config.ARENAS", {"mnist": cells})
    assert not set(names(config, own)) & set(before)


def test_leery_s_combiner_learns_from_images_that_the_classifier_gets_right(
    digit_net: nn.Module, training_digits: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = training_digits[0][:300], training_digits[1][:300].clone()
    wrong = torch.arange(300) < 30
    labels[wrong] = (labels[wrong] + 1) % 10
    given: dict[str, Tensor] = {}

    def spy(_self: Detector, clean: Tensor, *, noisy: Tensor) -> None:
        given.update(clean=clean, noisy=noisy)

    monkeypatch.setattr(Detector, "fit_combiner", spy)
    DefaultDetector(digit_net, metrics=("max_softmax", "margin")).fit(
        (images, labels), (images, labels)
    )
    right = predict(digit_net, images) == labels
    assert torch.equal(given["clean"], images[right])
    assert len(given["clean"]) <= 270
    assert 0 < len(given["noisy"]) <= 4 * 270
