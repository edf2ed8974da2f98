"""The options about classifier, pixels and files, on a small classifier of made-up pictures."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from leery import Detector
from leery.cli import main
from leery.models import normalized

NET = """
import torch
from torch import nn


def body():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2)
    ).eval()


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = body()

    def forward(self, images):
        return {"scores": self.net(images), "images": images}


def sigmoid():
    return nn.Sequential(body(), nn.Sigmoid())
"""

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The command in a folder of its own, with data in [0, 1]: what it prints or complains of."""
    (tmp_path / "tiny_net.py").write_text(NET)
    generator = np.random.default_rng(0)
    labels = np.arange(100) % 2
    for name, count in (("train", 100), ("clean", 200), ("new", 60)):
        images = generator.random((count, 3, 8, 8), np.float32)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.resize(labels, count))
        np.savez(tmp_path / f"{name}-3.npz", images=3 * images, labels=np.resize(labels, count))
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, code: int = 0, model: str = "tiny_net:body") -> str:
        out, error = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["leery", *arguments, "--model", model])
        with (
            torch.random.fork_rng(devices=[]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
            pytest.raises(SystemExit) as caught,
        ):
            main()
        assert caught.value.code == code, error.getvalue()
        return out.getvalue() if code in (0, 3) else error.getvalue()

    yield command
    sys.modules.pop("tiny_net", None)


FIT = ("fit", "--train", "train.npz", "--clean", "clean.npz", "--fpr", "0.05", "--passes", "3")
FIT_3 = tuple(word.replace(".npz", "-3.npz") for word in FIT)


def described(run: Run, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*FIT, *more, "--json"))
    return found


def test_mean_and_std_make_a_classifier_of_plain_images(run: Run, tmp_path: Path) -> None:
    normal = ("--mean", "0.4,0.5,0.6", "--std", "0.2,0.2,0.3")
    assert described(run, *normal)["inputs"]["bounds"] == [0.0, 1.0]
    run("score", "guard.leery", "new.npz", "--out", "a.csv", *normal)
    sys.path.insert(0, str(tmp_path))
    try:
        import tiny_net  # type: ignore[import-not-found] # noqa: PLC0415 - made by this test
    finally:
        sys.path.remove(str(tmp_path))
    with torch.random.fork_rng(devices=[]):
        model = normalized(tiny_net.body(), [0.4, 0.5, 0.6], [0.2, 0.2, 0.3])
    detector = Detector.load("guard.leery", model)
    rows = pd.read_csv("a.csv")["score"]
    with np.load("new.npz") as new:
        assert np.allclose(rows, detector.score(torch.from_numpy(new["images"])))
    assert "was fitted on" in run("score", "guard.leery", "new.npz", code=1)
    for wrong, text in (
        (("--mean", "0.5"), "both a mean and a standard deviation, got one of them"),
        (("--mean", "x", "--std", "1"), "numbers separated by commas for --mean, got 'x'"),
        (("--mean", "0.5", "--std", "0"), "standard deviation above 0 for each channel"),
    ):
        assert text in run(*FIT, "--out", "n.leery", *wrong, code=1)


@pytest.mark.parametrize(("where", "code"), [("scores", 0), ("1", 1)])
def test_the_logits_are_where_an_option_says(where: str, code: int, run: Run) -> None:
    asked = ("--logits", where)
    shown = run(*FIT, *asked, code=code, model="tiny_net:Several")
    if code:
        assert "expected 1 in the output of the model, got dict without it" in shown
        return
    run("score", "guard.leery", "new.npz", *asked, model="tiny_net:Several")
    run("inspect", "guard.leery", *asked, model="tiny_net:Several")
    error = run(*FIT, "--out", "n.leery", code=1, model="tiny_net:Several")
    assert "got dict with scores, images; say where they are" in error


def test_bounds_reach_attacks_noise_and_evaluation(run: Run) -> None:
    bounds = ("--bounds", "0,3")
    error = run(*FIT_3, "--attack", "pgd:0.3", code=1)
    assert "expected pixels within the bounds (0.0, 1.0), got" in error
    assert "(--bounds LOW,HIGH)" in error
    assert not Path("guard.leery").exists()
    run(*FIT_3, "--attack", "pgd:0.3", "--noise", "0.2", *bounds)
    asked = ("--data", "new-3.npz", "--attack", "pgd:0.5", "--noise", "0.2", "--json")
    facts = json.loads(run("evaluate", "guard.leery", *asked))
    assert facts["rows"][0]["n_noisy"] > 0
    run("attack", "--data", "new-3.npz", "--attack", "fgsm:0.5", *bounds)
    with np.load("adversarial.npz") as made, np.load("new-3.npz") as new:
        assert float(np.abs(made["images"] - new["images"]).max()) == pytest.approx(0.5, abs=1e-6)
        assert float(made["images"].max()) <= 3
    per_channel = run(*FIT_3, "--bounds", "0,3,0,3,-1,3", "--out", "c.leery", "--json")
    assert json.loads(per_channel)["inputs"]["bounds"] == [[0.0, 3.0], [0.0, 3.0], [-1.0, 3.0]]
    for wrong in ("0", "1,0", "a,b", "0,1,2"):
        error = run(*FIT_3, "--bounds", wrong, "--out", "n.leery", code=1)
        assert "expected " in error
        assert error.count("\n") == 1


def test_outputs_that_are_no_logits_are_taken_only_where_that_is_insisted_on(run: Run) -> None:
    error = run(*FIT, code=1, model="tiny_net:sigmoid")
    assert "(--trust-outputs)" in error
    run(*FIT, "--trust-outputs", "--layer", "input of 0.4", model="tiny_net:sigmoid")


def test_a_device_that_is_not_there_is_refused(run: Run) -> None:
    run(*FIT, "--device", "cpu")
    for wrong in ("cuda:99", "abacus"):
        error = run(*FIT, "--device", wrong, "--out", "n.leery", code=1)
        assert f"a device that this torch can use, got '{wrong}'" in error
        assert error.count("\n") == 1


def test_a_detector_is_replaced_only_where_that_is_asked_for(run: Run) -> None:
    run(*FIT)
    before = Path("guard.leery").read_bytes()
    again = ("calibrate", "guard.leery", "--clean", "new.npz", "--fpr", "0.1")
    for command in (FIT, again):
        assert "add --force" in run(*command, code=1)
        assert Path("guard.leery").read_bytes() == before
    run(*again, "--out", "other.leery")
    assert Path("guard.leery").read_bytes() == before
    run(*again, "--force")
    assert Path("guard.leery").read_bytes() != before
    run(*[word for word in FIT if word not in ("--fpr", "0.05")], "--force")
    # A detector without a threshold gets one in place.
    run(*again)


def test_too_few_clean_images_are_refused_before_the_fit(run: Run) -> None:
    few = ("fit", "--train", "train.npz", "--clean", "new.npz", "--fpr", "0.01")
    error = run(*few, code=1)
    assert "for a false-alarm rate of 0.01 and as many for the combiner, got 60; add" in error
    assert "reading" not in error


def test_a_warning_is_one_line_and_the_work_is_done(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    with np.load("clean.npz") as clean, np.load("new.npz") as new:
        mixed = np.concatenate([new["images"], new["images"][:7], clean["images"][:1]])
    np.savez("mixed.npz", images=mixed)
    run(*FIT)
    run("calibrate", "guard.leery", "--clean", "mixed.npz", "--out", "o.leery", "--fpr", "0.1")
    assert json.loads(run("inspect", "o.leery", "--json"))["calibration"]["fpr"] == 0.1
    assert capfd.readouterr().err == ""


def test_the_orientation_of_pictures_is_an_option(run: Run) -> None:
    run(*FIT)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save("up.png")
    Image.fromarray(pixels[::-1, ::-1].copy()).save("turned.png", exif=exif)
    for option, alike in (((), False), (("--exif",), True)):
        run("score", "guard.leery", "up.png", "turned.png", "--out", "s.csv", *option)
        first, second = (line.split(",")[1:] for line in Path("s.csv").read_text().splitlines()[1:])
        assert (first == second) == alike


def test_whole_numbers_are_no_pixels_of_a_detector_of_floats(run: Run) -> None:
    run(*FIT)
    whole = np.random.default_rng(2).integers(0, 256, (200, 3, 8, 8), dtype=np.int32)
    np.savez("whole.npz", images=whole, labels=np.arange(200) % 2)
    for command in (
        ("calibrate", "guard.leery", "--clean", "whole.npz", "--out", "n.leery"),
        ("evaluate", "guard.leery", "--data", "whole.npz", "--attack", "fgsm:0.1"),
    ):
        assert "elements of torch.int64, where the fit had torch.float32" in run(*command, code=1)
    run("score", "guard.leery", "whole.npz", "--out", "s.csv", code=3)
    assert Path("s.csv").read_text().count("where the fit had torch.float32") == 200
