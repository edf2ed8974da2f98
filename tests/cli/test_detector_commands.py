"""The way from a classifier to verdicts on the command line, on real digits."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torch import Tensor

from leery import Detector
from leery.classifiers import pretrained
from leery.cli import main
from leery.names import BASELINES, IMAGE_BASELINES, RECOMMENDED_METRICS
from tests.conftest import Batch

NET = """
from leery.classifiers import DigitNet, build, pretrained
import torch

def make():
    return pretrained("mnist").model

def empty():
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model

def hungry():
    model = make()
    model.register_forward_pre_hook(lambda *_: bytearray(2**62))
    return model

number = 7

def random():
    return build("mnist")

def raises():
    raise KeyError("lost")

def late():
    from layers import size
    return make()

def table():
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    return torch.nn.Sequential(*layers).eval()

def second():
    from leery.metrics import AuxiliaryAgreement
    return AuxiliaryAgreement(build("mnist"))
"""


class Place:
    """A folder with a classifier and data, and the command in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """The command as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "leery", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env={**os.environ, "LEERY_MODEL": "net:make"},
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """The command in this process: what it prints, or the error where one is expected."""
        out, error = self.both(*arguments, code=code)
        return out if code in (0, 3) else error

    def both(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """The command in this process: standard output and standard error."""
        out, error = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, LEERY_MODEL="net:make"),
            mock.patch.object(sys, "argv", ["leery", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
            pytest.raises(SystemExit) as caught,
        ):
            main()
        assert caught.value.code == code, error.getvalue()
        return out.getvalue(), error.getvalue()

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*arguments, "--json", code=code))
        return found


def as_bytes(images: Tensor) -> np.ndarray:
    return (images * 255).round().byte().numpy()


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image[0]).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits: Batch, training_digits: Batch) -> Place:
    """A detector of the digit classifier, calibrated at 5 %, and data of every kind."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "net.py").write_text(NET)
    (folder / "layers.py").write_text("size = 3\n")
    (folder / "torn.py").write_text("import no_such_package\n")
    (folder / "bad.py").write_text("def make(:\n")
    (folder / "folder.csv").mkdir()
    images, labels = digits
    for name, part in {"held": slice(0, 600), "test": slice(600, 800)}.items():
        np.savez(folder / f"{name}.npz", images=as_bytes(images[part]), labels=labels[part].numpy())
    np.savez(
        folder / "train.npz", images=as_bytes(training_digits[0]), labels=training_digits[1].numpy()
    )
    pictures = [png(image) for image in as_bytes(images[1000:4100])]
    pq.write_table(pa.table({"images": pictures}), folder / "many.parquet", row_group_size=700)
    (folder / "incoming").mkdir()
    for number in range(12):
        (folder / "incoming" / f"{number:02d}.png").write_bytes(pictures[number])
    (folder / "incoming" / "03b.png").write_bytes(b"no picture")
    place = Place(folder)
    arguments = ["--train", "train.npz", "--clean", "held.npz", "--noise", "0.3"]
    metrics = "auxiliary_agreement,noise_consistency,squeezing_1bit_logits,paper"
    settings = ("--metrics", metrics, "--passes", "10", "--references", "200")
    place.run("fit", *arguments, *settings, "--fpr", "0.05")
    return place


def test_fit_writes_the_detector_that_the_library_makes(place: Place, digits: Batch) -> None:
    facts = place.json("inspect", "guard.leery")
    assert facts["layers"]["head"] == "input of classify.1"
    assert facts["settings"]["combiner"] == "conformal"
    assert facts["calibration"]["fpr"] == 0.05
    assert facts["tensors"]["calibration/scores"]["shape"] == [1800]
    assert facts["bytes"] == (place.folder / "guard.leery").stat().st_size
    detector = Detector.load(place.folder / "guard.leery", pretrained("mnist").model)
    assert detector.flag(digits[0][1000:1300]).mean() < 0.12
    shown = place.run("inspect", "guard.leery", "--model", "net:make")
    flat = " ".join(shown.split())
    assert "at most 0.05 on average over calibration sets; from 1,800 images (clean, gauss" in flat
    assert "way: graph (the deterministic part once" in shown


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_scores_are_those_of_the_library_one_row_each(place: Place, suffix: str) -> None:
    out = place.folder / f"scores.{suffix}"
    summary = place.json("score", "guard.leery", "incoming", "--out", out.name, code=3)
    assert (summary["rows"], summary["unreadable"]) == (13, 1)
    rows = read_rows(out)
    detector = Detector.load(place.folder / "guard.leery", pretrained("mnist").model)
    images = torch.stack(
        [
            torch.from_numpy(np.asarray(Image.open(path)) / np.float32(255))[None]
            for path in sorted((place.folder / "incoming").glob("??.png"))
        ]
    )
    good = rows[rows["error"].isna()]
    assert np.allclose(good["score"].astype(float), detector.score(images))
    assert np.allclose(good["p_value"].astype(float), detector.p_value(images))
    verdicts = [str(verdict).lower() == "true" for verdict in good["adversarial"]]
    assert verdicts == detector.flag(images).tolist()
    assert sum(verdicts) == summary["flagged"]
    table = detector.measure(images)
    assert np.allclose(good["kernel_density"].astype(float), table.column("kernel_density"))
    assert good["predicted"].astype(int).tolist() == table.predicted.tolist()
    (bad,) = rows[rows["error"].notna()].to_dict("records")
    assert (bad["name"], bad["error"]) == ("incoming/03b.png", "not an image of a supported format")
    assert pd.isna(bad["score"])
    assert not list(place.folder.glob("*.parts"))


def read_rows(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pandas()
    if path.suffix == ".csv":
        with path.open() as stream:
            return pd.DataFrame(list(csv.DictReader(stream))).replace("", None)
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])


@pytest.mark.slow
def test_a_killed_run_goes_on_and_has_every_row_once(place: Place) -> None:
    place.run("score", "guard.leery", "many.parquet", "--out", "whole.parquet")
    parts = place.folder / "cut.parquet.parts"
    process = place.start("score", "guard.leery", "many.parquet", "--out", "cut.parquet")
    while process.poll() is None and len(finished(parts)) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in finished(parts)}
    assert len(before) >= 2
    assert not (place.folder / "cut.parquet").exists()
    resumed = place.start(
        "score", "guard.leery", "many.parquet", "--out", "cut.parquet", "--resume"
    )
    while resumed.poll() is None:
        now = {path: _mtime(path) for path in before}
        assert all(time in (before[path], None) for path, time in now.items())
        time.sleep(0.05)
    assert resumed.wait() == 0
    found, whole = (pq.read_table(place.folder / f"{name}.parquet") for name in ("cut", "whole"))
    assert found.equals(whole)
    names = found.column("name").to_pylist()
    assert len(set(names)) == len(names) == 3100


def test_workers_and_shards_give_the_bytes_of_one_process(place: Place) -> None:
    score = ("score", "guard.leery", "many.parquet", "--out")
    whole = place.json(*score, "one.parquet", "--workers", "1")
    place.run(*score, "two.parquet", "--workers", "2")
    shares = [place.json(*score, "three.parquet", "--shard", f"{i}/3") for i in (3, 1)]
    lacking = place.run(*score, "three.parquet", "--merge", code=1)
    assert "expected parts 1-4 in three.parquet.parts, got no file for 2; " in lacking
    shares.append(place.json(*score, "three.parquet", "--shard", "2/3"))
    assert sum(share["rows"] for share in shares) == 3100
    assert place.json(*score, "three.parquet", "--merge") == {**whole, "out": "three.parquet"}
    one = (place.folder / "one.parquet").read_bytes()
    for name in ("two.parquet", "three.parquet"):
        assert (place.folder / name).read_bytes() == one
        assert not (place.folder / f"{name}.parts").exists()


def test_too_little_memory_is_one_sentence(place: Place) -> None:
    words = ("fit", "--train", "train.npz", "--clean", "held.npz", "--model", "net:hungry")
    said = place.run(*words, "--out", "hungry.leery", "--workers", "1", code=1)
    assert said.startswith("leery: expected this machine to carry out the computation, ")
    assert "got MemoryError; mend that, then run the command again, with --resume if it" in said
    assert not (place.folder / "hungry.leery").exists()


@pytest.mark.slow
def test_shards_run_at_the_same_time_and_one_is_killed(place: Place) -> None:
    score = ("score", "guard.leery", "many.parquet", "--out")
    place.run(*score, "alone.parquet")
    words = [*score, "beside.parquet", "--workers", "1", "--shard"]
    running = [place.start(*words, f"{i}/2") for i in (1, 2)]
    parts = place.folder / "beside.parquet.parts"
    while not any(path.name >= "00000002" for path in parts.glob("0*.parquet")):
        assert running[1].poll() is None
        time.sleep(0.02)
    running[1].kill()
    running[1].wait()
    # The shard had not ended by itself.
    assert len(list(parts.glob("0*.parquet"))) < 4
    place.run(*words, "2/2")
    assert running[0].wait() == 0
    place.run(*score, "beside.parquet", "--merge")
    alone, beside = (place.folder / f"{name}.parquet" for name in ("alone", "beside"))
    assert beside.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize(
    "metrics",
    [
        "paper,mahalanobis,nearest_neighbours",
        pytest.param("auxiliary_agreement,paper", marks=pytest.mark.slow),
    ],
)
def test_workers_and_shards_of_a_fit_give_the_bytes_of_one_process(
    place: Place, metrics: str
) -> None:
    data = ("--train", "train.npz", "--clean", "held.npz", "--fpr", "0.05")
    fit = ("fit", *data, "--metrics", metrics, "--passes", "3", "--references", "200", "--out")
    place.run(*fit, "one.leery", "--workers", "1")
    place.run(*fit, "two.leery", "--workers", "2")
    place.run(*fit, "three.leery", "--shard", "2/2")
    lacking = place.run(*fit, "three.leery", "--merge", code=1)
    assert "expected parts 1-6 in three.leery.parts/learned, got no file for 1-3; " in (lacking)
    place.run(*fit, "other.leery", "--shard", "1/2")
    place.run(*fit, "three.leery", "--merge", "--parts", "other.leery.parts")
    one = (place.folder / "one.leery").read_bytes()
    for name in ("two.leery", "three.leery"):
        assert (place.folder / name).read_bytes() == one
        assert not (place.folder / f"{name}.parts").exists()
        (place.folder / name).unlink()
    shutil.rmtree(place.folder / "other.leery.parts")
    (place.folder / "one.leery").unlink()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--shard", "3/2"], "expected a shard I/N with I from 1 to N, such as 2/3, got '3/2'"),
        (["--shard", "1/2", "--merge"], "expected --merge alone, got --shard too"),
        (["--resume", "--merge"], "expected --merge alone, got --resume too"),
        (["--parts", "a.parts"], "expected --parts with --merge, got it without"),
        (["--merge", "--parts", "a.parts"], "expected the parts of a run in a.parts, got none"),
        (["--merge"], "expected parts 1-1 in no.csv.parts, got no file for 1"),
        (["--workers", "0"], "expected at least 1 worker, got 0"),
    ],
)
def test_shards_that_are_none_are_refused(place: Place, options: list[str], error: str) -> None:
    before = sorted(path.name for path in place.folder.iterdir())
    assert error in place.run(
        "score", "guard.leery", "incoming", "--out", "no.csv", *options, code=1
    )
    assert sorted(path.name for path in place.folder.iterdir()) == before


def finished(parts: Path) -> Sequence[Path]:
    return sorted(parts.glob("[0-9]*.parquet"))


def _mtime(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def test_a_run_is_not_resumed_with_other_inputs(place: Place) -> None:
    process = place.start("score", "guard.leery", "many.parquet", "--out", "b.csv")
    while process.poll() is None and not finished(place.folder / "b.csv.parts"):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    other = ["score", "guard.leery", "incoming", "--out", "b.csv"]
    error = place.run(*other, "--resume", code=1)
    assert "device and versions with which b.csv.parts was written, got different" in error
    assert place.json(*other, code=3)["rows"] == 13


def test_calibrate_changes_the_promise_and_refuses_too_much(place: Place) -> None:
    arguments = ["calibrate", "guard.leery", "--clean", "test.npz", "--out", "other.leery"]
    arguments = [*arguments, "--force", "--no-harmless"]
    facts = place.json(*arguments, "--fpr", "0.1", "--pac", "--confidence", "0.9")
    assert facts["calibration"] == {
        "fpr": 0.1,
        "promise": "pac",
        "confidence": 0.9,
        "per_class": False,
        "right_only": False,
        "kinds": ["clean"],
    }
    assert "with confidence 0.9; from 200" in place.run("inspect", "other.leery")
    error = place.run(*arguments, "--fpr", "0.001", code=1)
    assert "at least 999 clean images for a false-alarm rate of 0.001, got 200; add" in error
    error = place.run(*arguments, "--fpr", "0.01", "--per-class", code=1)
    assert (
        "at least 99 clean images for a false-alarm rate of 0.01 in each of 10 predicted" in error
    )


def test_attack_and_evaluate_agree(place: Place) -> None:
    facts = place.json(
        "attack", "--data", "test.npz", "--attack", "bim:0.3", "--attack", "fgsm:0.1"
    )
    with np.load(place.folder / "adversarial.npz") as written:
        assert written["images"].shape == (400, 1, 28, 28)
        assert written["source"].tolist() == [*range(200)] * 2
        changed = written["predicted"][:200] != written["labels"][:200]
    assert facts["success"]["bim:0.3"] == pytest.approx(changed.mean())
    assert changed.mean() > 0.95
    arguments = ["evaluate", "guard.leery", "--data", "test.npz", "--attack", "bim:0.3"]
    facts = place.json(*arguments, "--noise", "0.3")
    rows, alarms = facts["rows"], facts["false_alarms"]
    assert [alarms[0][name] for name in ("change", "class")] == ["clean", "all"]
    assert alarms[0]["share"] == rows[0]["false_alarms"]
    assert alarms[0]["images"] == sum(row["images"] for row in alarms[1:11])
    assert rows[0]["positives"] == "all"
    assert rows[0]["auc"] > 0.9
    assert rows[0]["found"] > 0.3
    trials = rows[0]["n_adversarial"]
    interval = binomtest(round(rows[0]["found"] * trials), trials).proportion_ci(method="wilson")
    assert [rows[0][f"found_{end}"] for end in ("low", "high")] == pytest.approx(list(interval))
    assert rows[0]["false_alarms"] < 0.15
    shown = " ".join(place.run(*arguments).split())
    assert "The attacker knows the classifier and not the detector." in shown
    assert re.search(r"every successful attack is flagged on \d+\.\d% \(95 % interval", shown)
    assert re.search(r"Highest rate under a harmless change: \d", shown)
    assert re.search(
        r"False alarms among the \d+ clean images that the classifier gets right", shown
    )


def test_noise_is_measured_where_it_is_asked_for(place: Place) -> None:
    arguments = ["evaluate", "guard.leery", "--data", "test.npz", "--attack", "fgsm:0.3"]
    quiet = place.json(*arguments)["rows"][0]
    noisy = place.json(*arguments, "--noise", "0.3")["rows"][0]
    assert (quiet["n_noisy"], noisy["n_noisy"]) == (0, quiet["n_clean"])


def test_folders_number_the_classes_of_the_classifier(place: Place, digits: Batch) -> None:
    for label in range(8):
        (place.folder / "eight" / str(label)).mkdir(parents=True)
        picture = png(as_bytes(digits[0][digits[1] == label][:1])[0])
        (place.folder / "eight" / str(label) / "a.png").write_bytes(picture)
    for command in (
        ("attack", "--data", "eight", "--attack", "fgsm:0.1"),
        ("fit", "--train", "eight", "--clean", "held.npz", "--out", "e.leery"),
        ("evaluate", "guard.leery", "--data", "eight", "--attack", "fgsm:0.1"),
    ):
        assert "a folder for each of 10 classes in eight, got 8" in place.run(*command, code=1)


def test_fit_with_attacks_learns_a_logistic_combiner(place: Place) -> None:
    facts = place.json(
        *("fit", "--train", "train.npz", "--clean", "test.npz", "--attack", "fgsm:0.2"),
        *("--out", "logistic.leery", "--bandwidth", "1.7", "--half", "--layer", "hidden"),
        *("--metrics", "kernel_density,confidence", "--passes", "3"),
    )
    assert facts["settings"]["combiner"] == "logistic"
    (density,) = (metric for metric in facts["metrics"] if metric["name"] == "kernel_density")
    assert density["options"]["bandwidth"] == 1.7
    assert facts["tensors"]["metrics/kernel_density/points"]["dtype"] == "F16"
    assert "calibration" not in facts
    summary = place.json("score", "logistic.leery", "incoming", "--out", "l.csv", code=3)
    assert summary["flagged"] is None


def test_weights_are_read_without_running_code(place: Place) -> None:
    model = pretrained("mnist").model
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, place.folder / "good.safetensors")
    torch.save({"state_dict": model.state_dict()}, place.folder / "good.pt")
    torch.save(model, place.folder / "whole.pt")
    torch.save({"nothing": torch.zeros(1)}, place.folder / "other.pt")
    for name in ("good.safetensors", "good.pt"):
        arguments = ["inspect", "guard.leery", "--model", "net:empty", "--weights", name]
        assert "way: graph" in place.run(*arguments)
    unreadable = "as safetensors or a state dict of torch.save, got a file that cannot be read as"
    expected = {
        "whole.pt": f"in whole.pt, {unreadable} either without running code; save model.state_",
        "other.pt": "got a file without convolutions.0.weight, convolutions.0.bias, ",
        "held.npz": f"in held.npz, {unreadable} either",
        "none.pt": "expected weights at none.pt, got no file; correct the path",
        "incoming": "expected weights at incoming, got no file; correct the path",
        "net.py": f"in net.py, {unreadable} either",
    }
    for name, text in expected.items():
        arguments = ["inspect", "guard.leery", "--model", "net:make", "--weights", name]
        assert text in place.run(*arguments, code=1)


def test_a_factory_may_import_its_neighbours(place: Place) -> None:
    assert "way: graph" in place.run("inspect", "guard.leery", "--model", "net:late")


def test_a_stranger_s_file_is_shown_as_it_is(place: Place) -> None:
    """Neither markup nor control codes in it reach the terminal."""
    with safetensors.safe_open(place.folder / "guard.leery", framework="pt") as stream:
        facts = json.loads(stream.metadata()["leery"])
    facts["classifier"] = "[/red]\x1b[2J"
    odd = place.folder / "odd.leery"
    save_file({"x": torch.zeros(1)}, odd, {"leery": json.dumps(facts)})
    shown = place.run("inspect", "odd.leery")
    assert "[/red]?[2J" in shown
    assert "not fitted" in shown
    facts["metrics"] = [1]
    save_file({"x": torch.zeros(1)}, odd, {"leery": json.dumps(facts)})
    assert "got metrics with missing or wrong parts" in place.run("inspect", "odd.leery", code=1)


REFUSALS = {
    (
        "inspect",
        "guard.leery",
        "--model",
        "net",
    ): "expected MODULE:NAME as classifier, got 'net'",
    ("inspect", "guard.leery", "--model", "no_net:make"): "expected a Python module 'no_net'",
    (
        "inspect",
        "guard.leery",
        "--model",
        "torn:make",
    ): "Python module 'no_such_package', got none",
    (
        "inspect",
        "guard.leery",
        "--model",
        "bad:make",
    ): "expected to import a classifier as bad:make, got SyntaxError",
    (
        "inspect",
        "guard.leery",
        "--model",
        "net:raises",
    ): "a classifier, got KeyError: 'lost'; correct its code",
    ("score", "guard.leery", "test.npz", "test.npz"): "each input once, got test.npz twice",
    (
        "score",
        "guard.leery",
        "test.npz",
        "--out",
        "folder.csv",
    ): "folder.csv to be a file, got a folder",
    (
        "score",
        "guard.leery",
        "many.parquet",
        "--images-key",
        "x",
    ): "rename yours or pass its name (--images-key)",
    (
        "calibrate",
        "guard.leery",
        "--clean",
        "test.npz",
        "--out",
        "incoming",
    ): "expected incoming to be a file, got a folder",
    (
        "evaluate",
        "guard.leery",
        "--data",
        "test.npz",
    ): "one attack, got none; add --attack pgd:0.1",
    (
        "attack",
        "--data",
        "test.npz",
        "--attack",
        "pgd:1",
        "--out",
        "a.txt",
    ): "an .npz file as --out",
    (
        "fit",
        "--train",
        "train.npz",
        "--clean",
        "held.npz",
        "--fpr",
        "7",
        "--force",
    ): "between 0 and 1, got 7.0",
    ("fit", "--train", "held.npz", "--clean", "held.npz", "--out", "n"): "was not trained on, got ",
    (
        "fit",
        "--train",
        "train.npz",
        "--clean",
        "held.npz",
        "--model",
        "net:random",
        "--force",
    ): "pass --weights",
    ("fit", "--train", "train.npz", "--clean", "held.npz", "--out", "incoming"): "got a folder",
    ("inspect", "guard.leery", "--model", "net:number"): "class 'number' in net, got int",
    ("inspect", "net.py"): "expected a detector file at net.py",
    (
        "inspect",
        "guard.leery",
        "--model",
        "net:empty",
    ): "that guard.leery was fitted on (DigitNet",
    (
        "score",
        "guard.leery",
        "incoming",
        "--out",
        "a.xml",
    ): "an output file (.parquet, .csv, .jsonl), got",
    ("score", "guard.leery", "nowhere"): "expected a file or folder at nowhere, got none",
    ("fit", "--train", "train.npz", "--clean", "held.npz"): "got one that would be replaced; name",
    ("calibrate", "guard.leery", "--clean", "test.npz"): "got one that would be replaced; name",
    ("attack", "--data", "test.npz"): "at least one attack, got none; add --attack pgd:0.1",
    ("attack", "--data", "test.npz", "--attack", "x:1"): "expected one of fgsm, bim, pgd, cw, ",
    ("attack", "--data", "test.npz", "--attack", "pgd:a"): "a number as the strength of an",
    ("attack", "--data", "test.npz", "--attack", "pgd"): "its strength, such as pgd:0.3, got",
    ("evaluate", "guard.leery", "--data", "train.npz", "--attack", "fgsm:0.1"): "learned from",
    (
        "attack",
        "--data",
        "incoming/00.png",
        "--attack",
        "pgd:1",
    ): "expected a label for each image, got",
    (
        "fit",
        "--train",
        "many.parquet",
        "--clean",
        "held.npz",
        "--force",
    ): "a label for each input, got none",
    ("fit", "--train", "train.npz", "--clean", "held.npz", "--bandwidth", "x", "--force"): "as ban",
    ("fit", "--train", "train.npz", "--clean", "held.npz", "--layer", "x", "--force"): "the model",
}


@pytest.mark.parametrize("arguments", REFUSALS, ids=" ".join)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    place: Place, arguments: tuple[str, ...]
) -> None:
    before = sorted(place.folder.rglob("*"))
    error = place.run(*arguments, code=1)
    assert REFUSALS[arguments] in error
    assert error.count("\n") == 1
    assert sorted(path for path in place.folder.rglob("*") if "__pycache__" not in str(path)) == [
        path for path in before if "__pycache__" not in str(path)
    ]


def test_without_an_auxiliary_network_the_other_recommended_metrics_stay(place: Place) -> None:
    facts = place.json(
        *("fit", "--train", "train.npz", "--clean", "held.npz", "--fpr", "0.05"),
        *("--no-auxiliary", "--out", "plain.leery"),
    )
    names = [metric["name"] for metric in facts["metrics"]]
    assert names == list(RECOMMENDED_METRICS[1:])
    assert facts["agreement"] is None
    shown = place.run("inspect", "guard.leery")
    assert "auxiliary_agreement" in shown


def test_a_table_classifier_without_dropout_needs_no_option_of_its_own(place: Place) -> None:
    generator = np.random.default_rng(0)
    for name, count in (("rows", 300), ("more", 200)):
        labels = generator.integers(0, 3, count)
        rows = generator.normal(size=(count, 5)).astype("f4") + labels[:, None]
        np.savez(place.folder / f"{name}.npz", images=rows, labels=labels)
    facts = place.json(
        *("fit", "--model", "net:table", "--train", "rows.npz", "--clean", "more.npz"),
        *("--no-auxiliary", "--fpr", "0.05", "--out", "table.leery"),
    )
    names = [metric["name"] for metric in facts["metrics"]]
    assert names == ["log_margin", "kernel_density", "kl_divergence"]
    assert "--insert-dropout LAYER:P" in facts["left_out"]


@pytest.mark.slow
def test_a_killed_fit_goes_on_with_the_network_that_it_had_trained(place: Place) -> None:
    arguments = ("fit", "--train", "train.npz", "--clean", "held.npz", "--fpr", "0.05")
    out = ("--out", "cut.leery")
    process = place.start(*arguments, *out)
    parts = place.folder / "cut.leery.parts"
    while process.poll() is None and not list(parts.glob("00/*.safetensors")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place.folder / "cut.leery").exists()
    # Other weights than any training gives tell whether there was another training.
    (part,) = parts.glob("00/*.safetensors")
    marked = {name: torch.ones_like(tensor) for name, tensor in load_file(part).items()}
    save_file(marked, part)
    place.run(*arguments, *out, "--resume")
    assert not parts.exists()
    held = load_file(place.folder / "cut.leery")
    name = "metrics/auxiliary_agreement/auxiliary.classify.bias"
    assert torch.equal(held[name], torch.ones(10))


def test_a_second_classifier_is_given_from_the_command_line(place: Place) -> None:
    second = ("--metric", "net:second")
    facts = place.json(
        *("fit", "--train", "train.npz", "--clean", "held.npz", "--fpr", "0.05"),
        *(*second, "--out", "second.leery"),
    )
    assert facts["metrics"][-1]["name"] == "auxiliary_agreement"
    # It was not trained.
    assert facts["agreement"] < 0.5
    scored = ("score", "second.leery", "test.npz", "--out", "second.csv")
    assert place.json(*scored, "--metric", "net:second")["rows"] == 200
    error = place.run(*scored, code=1)
    assert "which was not trained by leery, got none; pass" in error
    assert "--metric with the function that returns it" in error


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_shows_the_baselines_on_other_libraries_attacks(place: Place) -> None:
    arguments = ("evaluate", "guard.leery", "--data", "test.npz", "--attack", "deepfool")
    rivals = ("--baselines", "--train", "train.npz")
    rows = place.json(*arguments, *rivals)["rows"]
    found = {row["detector"]: row["auc"] for row in rows if row["positives"] == "successful"}
    assert set(found) == {"detector", *BASELINES, *IMAGE_BASELINES}
    assert found["max_softmax"] > 0.95
    shown = place.run(*arguments, *rivals)
    assert "relative_mahalanobis" in shown
    assert "--baselines and --train together" in place.run(*arguments, "--baselines", code=1)


def test_dropout_is_put_in_from_the_command_line(place: Place) -> None:
    added = ("--insert-dropout", "hidden.0:0.2")
    facts = place.json(
        *("fit", "--train", "train.npz", "--clean", "held.npz", *added, "--passes", "3"),
        *("--metrics", "confidence", "--fpr", "0.05", "--out", "added.leery"),
    )
    assert facts["settings"]["passes"] == 3
    scored = ("score", "added.leery", "test.npz", "--out", "added.csv")
    assert place.json(*scored, *added)["rows"] == 200
    assert "LAYER:P, such as fc:0.3" in place.run(*scored, "--insert-dropout", "0.3", code=1)
