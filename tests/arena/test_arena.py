"""The arena: what is compared with what, detectors of one's own, broken ones, kills."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from leery.arena import ARENAS, DETECTORS, ArenaConfig
from leery.arena._attack_stage import run_attack
from leery.arena._classifier_stage import make_classifier
from leery.arena._config import Cell
from leery.arena._detectors import entries
from leery.arena._gather import _cells, _leaderboard, _Scored, summary
from leery.arena._page import write_page
from leery.arena._score_stage import _Stored
from leery.arena._workspace import CHANGES, FRESH_CHANGES, Split, Workspace
from leery.attacks import PGD
from leery.classifiers import Classifier, build, pretrained, save_classifier
from leery.errors import DataError, InputError
from leery.evaluation import roc_auc_interval
from leery.models import fingerprint, predict

OWN = '''
from functools import partial

import numpy as np
import torch

from leery.baselines import LocalIntrinsicDimensionality

few_neighbours = partial(LocalIntrinsicDimensionality, k=5)


class Constant:
    """A broken detector: every image has the same score."""

    differentiable = True

    def __init__(self, model):
        self.model = model

    def fit(self, train, clean, attacks=()):
        return self

    def score(self, images):
        return np.zeros(len(images))

    def differentiable_score(self, images):
        return torch.zeros(len(images))


class Raises(Constant):
    def score(self, images):
        raise ValueError("no idea")


class NotANumber(Constant):
    def score(self, images):
        return np.full(len(images), np.nan)


class Learner(Constant):
    """The largest pixel difference from the mean of the images that it learned from."""

    learns_from_attacks = True

    def fit(self, train, clean, attacks=()):
        made = [attack(self.model, *clean) for attack in attacks]
        self.centre = torch.cat(made).mean(0)
        return self

    def score(self, images):
        return -(images - self.centre).flatten(1).norm(dim=1).numpy()
'''

OWN_NAMES = ("Constant", "Raises", "NotANumber", "Learner", "few_neighbours")


def test_no_detector_is_judged_on_a_kind_of_attack_that_it_was_trained_on() -> None:
    for dataset in ARENAS:
        config = ArenaConfig(dataset, classifier=Path("net"))
        trainings = config.trainings
        assert set(config.training_attacks) <= set(config.cells)
        assert trainings["all"] == config.training_attacks
        for name, cell in config.cells.items():
            trained_on = trainings[config.unseen(name)]
            assert cell.family not in {config.cells[other].family for other in trained_on}
            assert len(trained_on) >= 2
        assert config.unseen("spatial") == "all"


def test_slow_attacks_are_run_on_fewer_images() -> None:
    config = ArenaConfig("mnist", limit=300)
    assert (config.count("PGD 0.30"), config.count("C&W 0")) == (300, 150)
    assert ArenaConfig("mnist", limit=100).count("C&W 0") == 100


def test_the_parts_of_a_slow_attack_are_all_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"mnist": {"quick": Cell(PGD(0.3, steps=2), "iterative", 0.01, slow=True)}}
    monkeypatch.setattr("leery.arena._config.ARENAS", own)
    workspace = Workspace(ArenaConfig("mnist", limit=120), tmp_path)
    make_classifier(workspace)
    assert len(workspace.attack_files("quick", "judging")) == 3
    for part in range(3):
        run_attack(workspace, "quick", "judging", part)
    made = workspace.adversarial("quick", "judging")
    images, labels = workspace.split().attacked
    moved = (made["images"] - images).flatten(1)
    assert len(moved) == len(made["success"]) == 120
    assert float(moved.abs().amax()) == pytest.approx(0.3)
    assert bool((moved.abs().amax(1) > 0.1).all())
    predicted = predict(workspace.classifier().model, made["images"])
    assert torch.equal(made["success"], predicted != labels)


def test_images_of_another_memory_layout_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(
        _model: torch.nn.Module, images: torch.Tensor, _labels: torch.Tensor, *, seed: int = 0
    ) -> torch.Tensor:
        del seed
        return images.transpose(2, 3).contiguous().transpose(2, 3)

    own = {"mnist": {"turned": Cell(turned, "iterative", 0.01)}}
    monkeypatch.setattr("leery.arena._config.ARENAS", own)
    workspace = Workspace(ArenaConfig("mnist", limit=20), tmp_path)
    make_classifier(workspace)
    run_attack(workspace, "turned", "judging", 0)
    images, _ = workspace.split().attacked
    assert torch.equal(workspace.adversarial("turned", "judging")["images"], images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "imagenet"}, "one of mnist, fashion-mnist, cifar-10 as dataset"),
        ({"limit": 19}, "a limit as a whole number of at least 20, got 19"),
        ({"seeds": 0}, "seeds as a whole number of at least 1, got 0"),
    ],
)
def test_options_outside_their_range_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArenaConfig(**{"dataset": "mnist", **given})  # type: ignore[arg-type]  # refused


def test_no_test_image_is_used_twice(tmp_path: Path) -> None:
    workspace = Workspace(ArenaConfig("mnist", limit=50), tmp_path)
    make_classifier(workspace)
    split = workspace.split()
    rows = [
        {image.numpy().tobytes() for image in images}
        for images, _ in (split.clean, split.threshold, split.fresh)
    ]
    assert [len(part) for part in rows[1:]] == [1250, 250]
    assert 1200 < len(rows[0]) <= 1250
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]
    attacked = {image.numpy().tobytes() for image in split.attacked[0]}
    assert len(attacked) == 50
    assert attacked <= rows[2]
    assert torch.equal(split.fresh[0][split.index_among_fresh], split.attacked[0])


class Made:
    """Made scores and successes of a detector that learns from no attack, on ten images."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cells = ("FGSM 0.30", "PGD 0.30", "DDN")
        self.success = {
            "FGSM 0.30": [1, 0, 0, 0, 1, 0],
            "PGD 0.30": [1, 1, 0, 0, 1, 0],
            "DDN": [1, 1, 0, 1],
        }
        # Above 9.9 is flagged at 1 %.
        scores = {
            "attack|FGSM 0.30": [20, 1, 1, 1, 1, 1],
            "attack|PGD 0.30": [20, 20, 1, 1, 20, 1],
            "attack|DDN": [20, -1, 20, 20],
        }
        everything = ARENAS["mnist"]
        monkeypatch.setitem(ARENAS, "mnist", {name: everything[name] for name in self.cells})
        right = {f"threshold|{kind}": np.arange(1000) < 900 for kind in ("clean", *CHANGES)}
        right |= {f"fresh|{kind}": np.arange(10) < 8 for kind in ("clean", *FRESH_CHANGES)}
        monkeypatch.setattr(Workspace, "right", lambda _self, name: right[name])
        monkeypatch.setattr(
            Workspace, "success", lambda _self, cell: np.array(self.success[cell], dtype=bool)
        )
        # The attacked images are the fresh ones with odd numbers and so on: never the first ones.
        monkeypatch.setattr(
            Workspace,
            "index_among_fresh",
            lambda _self, cell: np.array([1, 2, 3, 5, 6, 7])[: len(self.success[cell])],
        )
        arrays = {f"|{name}": np.array(values, dtype=float) for name, values in scores.items()}
        calm = np.linspace(0, 9.9, 900)
        for kind in ("clean", *CHANGES):
            arrays[f"|threshold|{kind}"] = np.append(calm, np.full(100, 1e9))
        for kind in FRESH_CHANGES:
            arrays[f"|fresh|{kind}"] = np.zeros(10)
        arrays["|evaded"] = np.array([True, True, True, False])
        arrays["|certified"] = np.array([False, False, False, True])
        arrays["|with gradients"] = np.array([True])
        arrays["|fresh|clean"] = np.array([0, 0, 0, 0, 0, 30, 0, 0, 40, 40.0])
        arrays["|fresh|blur"] = np.array([30, 30, 0, 0, 30, 0, 0, 0, 40, 40.0])
        self.scored = _Scored(Workspace(ArenaConfig("mnist"), folder), DETECTORS[0], arrays)


def test_the_threshold_keeps_its_rate_on_every_kind_of_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("clean", *CHANGES)
    monkeypatch.setattr(Workspace, "right", lambda _self, _name: np.arange(1000) < 900)
    arrays = {
        f"|threshold|{kind}": np.arange(1000.0) + 1000 * place for place, kind in enumerate(kinds)
    }
    arrays["|attack|DDN"] = np.array([4899.0, 4891.0, 4892.0, 0.0, 893.0])
    made = _Scored(Workspace(ArenaConfig("mnist"), tmp_path), DETECTORS[0], arrays)
    # 900 right images of the last kind: 4000 to 4899; 8 of them and the image are under 1 % of 901.
    expected = [True, False, True, False, False]
    assert made.flagged("", "attack|DDN", 0.01).tolist() == expected
    # Clean ones alone: 0 to 899.
    clean = made.flagged("", "attack|DDN", 0.01, ["clean"])
    assert clean.tolist() == [True, True, True, False, True]


def test_a_leaderboard_has_the_worst_attack_and_what_is_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = _leaderboard(Made(tmp_path, monkeypatch).scored)
    # Found of the successful ones: FGSM 1 of 2, PGD 3 of 3, DDN 2 of 3.
    assert row["worst_attack_at_1_fpr"] == "FGSM 0.30"
    assert row["worst_at_1_fpr"] == 0.5
    assert row["worst_images_at_1_fpr"] == 2
    interval = binomtest(1, 2).proportion_ci(method="wilson")
    assert row["worst_at_1_fpr_low"] == pytest.approx(interval.low)
    assert row["worst_at_1_fpr_high"] == pytest.approx(interval.high)
    assert row["mean_at_1_fpr"] == pytest.approx((1 / 2 + 1 + 2 / 3) / 3)
    # Of the four images that all attacks were run on, three were attacked successfully: the first
    # is always flagged, the second is missed by DDN, the fourth is flagged.
    assert row["every_attack_at_1_fpr"] == pytest.approx(2 / 3)
    # Of the first eight images, which are right: one clean one, three blurred ones.
    assert row["false_alarms_at_1_fpr"] == 1 / 8
    assert row["most_false_alarms_at_1_fpr"] == 3 / 8
    assert row["most_false_alarms_on_at_1_fpr"] == "blur"
    assert (row["evaded_at_1_fpr"], row["evaded_images_at_1_fpr"]) == (0.75, 4)
    assert row["evaded_with_gradients"]
    assert row["certified_at_1_fpr"] == 0.25


def test_the_area_of_a_cell_is_scikit_learn_s_and_clustered_by_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, monkeypatch)
    rows = {(row["attack"], row["positives"]): row for row in _cells(made.scored)}
    assert set(rows) == {
        (cell, kind) for cell in made.cells for kind in ("all", "successful", "failed")
    }
    row = rows["DDN", "successful"]
    assert (row["images"], row["unseen"], row["trained_on"]) == (3, True, "")
    assert row["tpr_at_1_fpr"] == pytest.approx(2 / 3)
    negative = [0, 0, 0, 0, 0, 30, 0, 0]
    scores = np.array([20, -1, 20, *negative], dtype=float)
    truth = np.arange(len(scores)) < 3
    assert row["auc"] == pytest.approx(roc_auc_score(truth, scores))
    # The attacked images 1, 2 and 5 are among the clean ones 0 to 7.
    expected = roc_auc_interval(scores, truth, np.array([1, 2, 5, *range(8)]))
    assert (row["auc_low"], row["auc_high"]) == (expected.low, expected.high)
    other = roc_auc_interval(scores, truth, np.array([101, 102, 105, *range(8)]))
    assert (other.low, other.high) != (expected.low, expected.high)


def test_a_page_is_written_where_every_detector_raised(tmp_path: Path) -> None:
    board = {
        "seed": [0],
        "detector": ["mine"],
        "learns_from_attacks": [False],
        "error": ["no <idea>"],
    }
    attack = {"seed": 0, "attack": "DDN", "family": "smallest change", "images": 20, "success": 1.0}
    attack |= {"mean_l2": 1.0, "mean_linf": 0.5, "trains_supervised": True}
    time_of = {"kind": "detector", "name": "mine", "seconds": 1.0, "share": 1.0, "score_ms": np.nan}
    tables = {"leaderboard": pd.DataFrame(board), "attacks": pd.DataFrame([attack])}
    tables |= {"cells": pd.DataFrame(), "false-alarms": pd.DataFrame()}
    manifest = {"config": {"dataset": "mnist"}, "again": "leery arena mnist"}
    record = {"network": "DigitNet", "test_accuracy": 0.99}
    whole = {**tables, "times": pd.DataFrame([time_of])}
    earlier = tmp_path / "figures" / "trainings.svg"
    earlier.parent.mkdir()
    earlier.touch()
    page = write_page(tmp_path, whole, {**manifest, "classifiers": [record]}).read_text()
    assert "<p><b>mine</b>: no &lt;idea&gt;</p>" in page
    assert "1 of which raised an error" in page
    assert "nan" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL).lower()
    # Nothing of an earlier run, of detectors that did not run, or of leery is told.
    assert not earlier.exists()
    assert 'id="training"' not in page
    assert "favours leery" not in page
    (table,) = re.findall(r'<table class="sheet" id="leaderboard">.*?</table>', page, re.DOTALL)
    assert table.count("<th ") == table.count("<td") == 14


def test_a_summary_has_means_over_classifiers_and_the_worst_attack_of_the_worst() -> None:
    table = pd.DataFrame(
        {
            "seed": [0, 1, 0, 1],
            "detector": ["a", "a", "b", "b"],
            "learns_from_attacks": False,
            "error": "",
            "worst_attack_at_1_fpr": ["DDN", "FGSM 0.30", "DDN", "DDN"],
            "worst_at_1_fpr": [0.8, 0.2, 0.6, 0.7],
            "mean_at_1_fpr": [0.9, 0.9, 0.8, 0.8],
        }
    )
    found = summary(table)
    assert found.detector.tolist() == ["b", "a"]
    assert found.worst_at_1_fpr.tolist() == pytest.approx([0.65, 0.5])
    assert found.worst_attack_at_1_fpr.tolist() == ["DDN", "FGSM 0.30"]
    assert found.worst_at_1_fpr_sd.tolist() == pytest.approx([0.1 / 2**0.5, 0.6 / 2**0.5])


def test_a_detector_that_raised_for_one_classifier_is_last_and_shows_its_error(
    tmp_path: Path,
) -> None:
    table = pd.DataFrame(
        {
            "seed": [0, 1, 0, 1],
            "detector": ["a", "a", "b", "b"],
            "learns_from_attacks": False,
            "error": ["", "ValueError: no [idea]", "", ""],
            "worst_attack_at_1_fpr": ["DDN", None, "DDN", "DDN"],
            "worst_at_1_fpr": [0.9, np.nan, 0.6, 0.7],
            "worst_at_1_fpr_low": [0.8, np.nan, 0.5, 0.6],
            "worst_at_1_fpr_high": [0.95, np.nan, 0.7, 0.8],
            "mean_at_1_fpr": [0.9, np.nan, 0.8, 0.8],
        }
    )
    table.to_csv(tmp_path / "leaderboard.csv", index=False)
    for given in (table, pd.read_csv(tmp_path / "leaderboard.csv")):
        found = summary(given)
        assert found.detector.tolist() == ["b", "a"]
        assert found.error.tolist() == ["", "ValueError: no [idea]"]
        # The images are the same for both classifiers: there is no interval of a mean over them.
        assert found.worst_at_1_fpr_low.isna().all()
    one = summary(table[table.seed == 0])
    assert one.worst_at_1_fpr_low.tolist() == [0.8, 0.5]


def test_an_attack_that_was_run_gives_its_images_in_any_order_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, labels = (part[:6] for part in digits)
    workspace = Workspace(ArenaConfig("mnist"), tmp_path)
    same = images, labels
    split = Split(same, same, same, same, torch.arange(6))
    monkeypatch.setattr(Workspace, "split", lambda _self: split)
    monkeypatch.setattr(Workspace, "adversarial", lambda *_: {"images": images + 1})
    attack = _Stored(workspace, "DDN")
    net = torch.nn.Flatten()
    order = torch.tensor([4, 0, 2])
    assert torch.equal(attack(net, images[order], labels[order]), images[order] + 1)
    with pytest.raises(InputError, match="some of the clean images that fit.. was given"):
        attack(net, images[:2] + 0.5, labels[:2])


def test_detectors_of_one_s_own_have_names_and_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_detectors.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    found = entries("mnist", ["own_detectors:Constant"])
    assert [entry.name for entry in found[-1:]] == ["Constant"]
    # Each dataset has its own sentinel.
    assert len({entry.name for entry in found}) == len(found) == len(DETECTORS)
    assert "sentinel" not in {entry.name for entry in entries("cifar-10")}
    with pytest.raises(InputError, match="'Constant' more than once; rename"):
        entries("mnist", ["own_detectors:Constant", "own_detectors:Constant"])
    with pytest.raises(InputError, match="function or class 'Missing' in own_detectors, got none"):
        entries("mnist", ["own_detectors:Missing"])
    (lid,) = entries("mnist", ["own_detectors:few_neighbours"], [])
    assert lid.supervised
    assert lid.module == "own_detectors"
    before = lid.source
    (tmp_path / "own_detectors.py").write_text(OWN.replace("k=5", "k=50"))
    assert lid.source != before
    assert [entry.name for entry in entries("mnist", ["own_detectors:Raises"], ["odds"])] == [
        "odds",
        "Raises",
    ]
    with pytest.raises(
        InputError, match="expected detectors from leery, sentinel, max_softmax, .* got 'mine'"
    ):
        entries("mnist", [], ["mine"])
    with pytest.raises(InputError, match="at least one detector, got none"):
        entries("mnist", [], [])


def test_a_classifier_of_one_s_own_is_used(tmp_path: Path) -> None:
    net = build("mnist")
    save_classifier(Classifier(net, {**pretrained("mnist").record, "seed": 7}), tmp_path / "own")
    config = ArenaConfig("mnist", limit=20, classifier=tmp_path / "own")
    workspace, shipped = (
        Workspace(one, tmp_path / "parts") for one in (config, ArenaConfig("mnist", limit=20))
    )
    assert workspace.attack_id("DDN", "judging") != shipped.attack_id("DDN", "judging")
    make_classifier(workspace)
    assert workspace.classifier().record["seed"] == 7
    assert fingerprint(workspace.classifier().model) == fingerprint(net)
    missing = Workspace(ArenaConfig("mnist", classifier=tmp_path), tmp_path / "parts")
    with pytest.raises(DataError, match="a classifier in .*mnist.safetensors, got .*leery train"):
        missing.attack_id("DDN", "judging")


def test_every_detector_of_the_arena_can_be_made(digit_net: torch.nn.Module) -> None:
    for entry in DETECTORS:
        made = entry.make(digit_net)
        assert made.model is digit_net, entry.name


def command(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "leery",
        "arena",
        "mnist",
        "--limit",
        "20",
        "--out",
        str(folder),
        *more,
    ]


@pytest.mark.slow
def test_an_arena_that_was_killed_twice_has_the_same_tables_and_shows_what_is_broken(
    tmp_path: Path,
) -> None:
    (tmp_path / "own_detectors.py").write_text(OWN)
    names = [f"own_detectors:{name}" for name in OWN_NAMES]
    own = [word for name in names for word in ("--detector", name)]
    own += ["--only", "energy", "--only", "kernel_density_uncertainty", "--only", "lid"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(
        command(whole, *own), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    for wanted in ("attack-", "detector-"):
        started = subprocess.Popen(
            command(killed, *own), cwd=tmp_path, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while started.poll() is None and not list(killed.glob(f"parts/{wanted}*")):
            time.sleep(0.2)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    done = subprocess.run(
        command(killed, *own, "--workers", "1"), cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    for name in ("leaderboard", "cells", "false-alarms", "attacks"):
        assert (whole / f"{name}.csv").read_bytes() == (killed / f"{name}.csv").read_bytes(), name
    board = pd.read_csv(whole / "leaderboard.csv", keep_default_na=False).set_index("detector")
    assert "no idea" in board.error["Raises"]
    assert "finite scores" in board.error["NotANumber"]
    assert float(board.worst_at_1_fpr["Constant"]) == 0.0
    assert float(board.false_alarms_at_1_fpr["Constant"]) == 0.0
    assert board.learns_from_attacks["Learner"]
    assert not board.learns_from_attacks["Constant"]
    assert float(board.mean_at_1_fpr["energy"]) > 0
    assert board.error["few_neighbours"] == ""
    assert board.mean_at_5_fpr["few_neighbours"] != board.mean_at_5_fpr["lid"]
    cells = pd.read_csv(whole / "cells.csv", keep_default_na=False)
    assert set(cells.trained_on[cells.detector == "Learner"]) == set(ArenaConfig("mnist").trainings)
    assert set(cells.attack) == set(ARENAS["mnist"])
    assert set(pd.read_csv(whole / "false-alarms.csv").change) == {"clean", *FRESH_CHANGES}
    assert (whole / "report.html").stat().st_size > 100_000


@pytest.mark.slow
def test_shards_of_an_arena_give_its_tables(tmp_path: Path) -> None:
    only = ["--only", "energy", "--only", "lid"]
    whole = tmp_path / "whole"
    subprocess.run(command(whole, *only), capture_output=True, check=True)
    shared = tmp_path / "shared"
    for words, code, said in (
        (["--merge"], 1, "expected the parts of shards in "),
        (["--shard", "2/2"], 4, "parts of other shards are missing (classifier: 1 of 1); run it"),
        (
            ["--shard", "1/2"],
            4,
            "Shard 1/2 stopped, because parts of other shards are missing (att",
        ),
        (
            ["--shard", "2/2"],
            0,
            "Shard 2/2 is done; once all shards are, --merge writes the tables.",
        ),
        (["--merge"], 1, "got too few (missing: detectors: 1 of 2); run the shards again"),
        (
            ["--shard", "1/2"],
            0,
            "Shard 1/2 is done; once all shards are, --merge writes the tables.",
        ),
        (["--merge"], 0, ""),
    ):
        done = subprocess.run(
            command(shared, *only, *words), capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert said in " ".join((done.stdout + done.stderr).split())
    for name in ("leaderboard", "cells", "false-alarms", "attacks"):
        assert (whole / f"{name}.csv").read_bytes() == (shared / f"{name}.csv").read_bytes(), name
