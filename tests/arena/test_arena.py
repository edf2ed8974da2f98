"""The arena: what is compared with what, detectors of one's own, broken ones, kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from leery.arena import ARENAS, DETECTORS, ArenaConfig
from leery.arena._classifier_stage import make_classifier
from leery.arena._detectors import entries
from leery.arena._gather import _Scored
from leery.arena._workspace import CHANGES, FRESH_CHANGES, Workspace
from leery.classifiers import Classifier, build, pretrained, save_classifier
from leery.errors import DataError, InputError
from leery.models import fingerprint

OWN = '''
import numpy as np
import torch


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "imagenet"}, "one of mnist, fashion-mnist, cifar-10 as dataset"),
        ({"limit": 19}, "a limit as a whole number of at least 20, got 19"),
        ({"dataset": "cifar-10"}, "of which none is shipped, got none; run `leery train cifar-10`"),
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


def scored(threshold: dict[str, np.ndarray], attack: np.ndarray, folder: Path) -> _Scored:
    """Made scores of a detector that learns from no attack."""
    arrays = {f"|threshold|{kind}": values for kind, values in threshold.items()}
    return _Scored(
        Workspace(ArenaConfig("mnist"), folder), DETECTORS[0], {**arrays, "|attack|DDN": attack}
    )


def test_the_threshold_keeps_its_rate_on_every_kind_of_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("clean", *CHANGES)
    right = np.arange(1000) < 900
    monkeypatch.setattr(Workspace, "right", lambda _self, _name: right)
    threshold = {kind: np.arange(1000.0) + 1000 * place for place, kind in enumerate(kinds)}
    made = scored(threshold, np.array([4899.0, 4891.0, 4892.0, 0.0]), tmp_path)
    # 900 right images of the last kind: 4000 to 4899; 8 of them and the image are under 1 % of 901.
    assert made.flagged("", "attack|DDN", 0.01).tolist() == [True, False, True, False]
    assert made.judged == [""]


def test_detectors_of_one_s_own_have_names_and_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_detectors.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    found = entries(["own_detectors:Constant"])
    assert [entry.name for entry in found[-1:]] == ["Constant"]
    assert len({entry.name for entry in found}) == len(DETECTORS) + 1
    with pytest.raises(InputError, match="'Constant' more than once; rename"):
        entries(["own_detectors:Constant", "own_detectors:Constant"])
    with pytest.raises(InputError, match="function or class 'Missing' in own_detectors, got none"):
        entries(["own_detectors:Missing"])
    assert [entry.name for entry in entries(["own_detectors:Raises"], ["odds"])] == [
        "odds",
        "Raises",
    ]
    with pytest.raises(
        InputError, match="expected detectors from leery, max_softmax, .* got 'mine'"
    ):
        entries([], ["mine"])
    with pytest.raises(InputError, match="at least one detector, got none"):
        entries([], [])


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
    names = [f"own_detectors:{name}" for name in ("Constant", "Raises", "NotANumber", "Learner")]
    own = [word for name in names for word in ("--detector", name)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(
        command(whole, *own), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
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
    assert done.returncode == 0, done.stderr
    for name in ("leaderboard", "cells", "false-alarms", "attacks"):
        assert (whole / f"{name}.csv").read_bytes() == (killed / f"{name}.csv").read_bytes(), name
    board = pd.read_csv(whole / "leaderboard.csv", keep_default_na=False).set_index("detector")
    assert "no idea" in board.error["Raises"]
    assert "finite scores" in board.error["NotANumber"]
    assert float(board.worst_at_1_fpr["Constant"]) == 0.0
    assert float(board.false_alarms_at_1_fpr["Constant"]) == 0.0
    assert board.learns_from_attacks["Learner"] == "True"
    assert float(board.mean_at_1_fpr["leery"]) > 0.8
    cells = pd.read_csv(whole / "cells.csv", keep_default_na=False)
    assert set(cells.trained_on[cells.detector == "Learner"]) == set(ArenaConfig("mnist").trainings)
    assert set(cells.attack) == set(ARENAS["mnist"])
    assert set(pd.read_csv(whole / "false-alarms.csv").change) == {"clean", *FRESH_CHANGES}
    assert (whole / "report.html").stat().st_size > 100_000
