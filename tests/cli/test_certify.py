"""Certificates on the command line."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from leery import Detector
from leery.certify import Sentinel, SentinelTraining
from leery.classifiers import pretrained
from leery.errors import LeeryWarning
from leery.training import SentinelRecipe
from tests.cli.test_detector_commands import NET, Place, as_bytes
from tests.cli.test_start import MISSING
from tests.conftest import Batch

RECIPE = SentinelRecipe(
    epsilon=0.1, width=8, hidden=32, epochs=8, batch_size=64, learning_rate=3e-3
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits: Batch, training_digits: Batch) -> Place:
    """A folder with a classifier, a detector with a sentinel, one without, and images."""
    folder = tmp_path_factory.mktemp("certify")
    (folder / "net.py").write_text(NET)
    for name, (images, labels), rows in (
        ("train", training_digits, slice(0, 3000)),
        ("held", digits, slice(0, 1500)),
        ("test", digits, slice(1500, 2000)),
    ):
        np.savez(folder / f"{name}.npz", images=as_bytes(images[rows]), labels=labels[rows])
    model = pretrained("mnist").model
    settings = {"metrics": ("max_softmax", "margin")}
    held = digits[0][:1500], digits[1][:1500]
    for name, sentinel in (("plain", None), ("guard", Sentinel(model, recipe=RECIPE))):
        made = Detector(model, sentinel=sentinel, **settings)  # type: ignore[arg-type]
        made.fit(training_digits[0][:3000], training_digits[1][:3000])
        made.calibrate(*held, fpr=0.02, harmless={}).save(folder / f"{name}.leery")
    return Place(folder)


def test_shares_rows_and_figure_of_the_certificates(place: Place, digits: Batch) -> None:
    printed = place.run(
        *("certify", "guard.leery", "--data", "test.npz"),
        *("--epsilon", "0.02", "0.05", "--out", "made"),
    )
    rows = pd.read_csv(place.folder / "made" / "certificates.csv")
    assert len(rows) == 500
    detector = Detector.load(place.folder / "guard.leery", pretrained("mnist").model)
    sentinel = detector.sentinel_
    assert sentinel is not None
    images, labels = digits[0][1500:2000], digits[1][1500:2000]
    for epsilon in (0.02, 0.05):
        found = sentinel.certify(images, labels, epsilon=epsilon)
        assert (rows[f"certified_linf_{epsilon}"] == found).mean() > 0.99
        right = rows[rows.right]
        certified = int(right[f"certified_linf_{epsilon}"].sum())
        interval = binomtest(certified, len(right)).proportion_ci(method="wilson")
        assert f"{certified / len(right):.1%}" in printed
        assert f"{interval.low:.1%} to {interval.high:.1%}" in printed
    facts = json.loads((place.folder / "made" / "certificates.json").read_text())
    assert facts["false_alarm_rate"] == pytest.approx(0.02)
    shares = {(row["what"], row["epsilon"]): row["share"] for row in facts["shares"]}
    calm = rows[rows.right & rows["certified_linf_0.02"] & ~rows.sentinel_flagged]
    assert shares["certified, not flagged", 0.02] == pytest.approx(len(calm) / rows.right.sum())
    figure = (place.folder / "made" / "certificates.svg").read_text()
    assert figure.startswith("<?xml")
    for text in (printed, json.dumps(facts)):
        assert "L-infinity" in text
        assert "Not covered" in text
    assert "Promised: at most 1%; of the whole detector at most 2%" in " ".join(printed.split())
    trained = {"epsilon": 0.1, "epochs": 8, "images": 3000}
    assert facts["training_of_the_sentinel"] == trained
    assert "up to 0.1 of the pixel range, 8 epochs, 3,000 images" in " ".join(printed.split())


def test_an_epsilon_of_the_whole_pixel_range_is_refused(place: Place) -> None:
    arguments = ("certify", "guard.leery", "--data", "test.npz", "--epsilon", "0.1", "25")
    found = place.run(*arguments, code=1)
    assert found == (
        "leery: expected each epsilon below the pixel range 1, got 25; give it in units of the "
        "pixel values\n"
    )


def test_without_matplotlib_all_but_the_figure_is_written(place: Place) -> None:
    arguments = ("certify", "guard.leery", "--data", "test.npz", "--epsilon", "0.02")
    done = subprocess.run(
        [sys.executable, "-c", MISSING.format(package="matplotlib"), *arguments, "--out", "bare"],
        cwd=place.folder,
        env={**os.environ, "LEERY_MODEL": "net:make"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "no figure was written, because matplotlib is not installed" in done.stderr
    made = {path.name for path in (place.folder / "bare").iterdir()}
    assert made == {"certificates.csv", "certificates.json"}


def test_epsilons_can_be_named_one_by_one_and_as_json(place: Place) -> None:
    found = place.json(
        *("certify", "images", "guard.leery", "--epsilon", "0.02", "--epsilon", "0.05"),
        *("--data", "test.npz", "--boxes", "8"),
    )
    certified = [row for row in found["shares"] if row["what"] == "certified"]
    assert [row["epsilon"] for row in certified] == [0.02, 0.05]
    assert certified[0]["share"] > certified[1]["share"] > 0
    plain = place.json("certify", "guard.leery", "--epsilon", "0.05", "--data", "test.npz")
    assert certified[1]["share"] > plain["shares"][1]["share"]


def test_a_sentinel_is_trained_and_added_to_a_detector(place: Place) -> None:
    refused = place.run(
        *("certify", "plain.leery", "--data", "test.npz", "--epsilon", "0.1"), code=1
    )
    assert "expected a detector with a calibrated sentinel at plain.leery, got one w" in refused
    place.run(
        *("certify", "train", "plain.leery", "--train", "train.npz", "--clean", "held.npz"),
        *("--fpr", "0.04", "--sentinel-share", "0.25", "--epsilon", "0.05", "--epochs", "6"),
        *("--right-only", "--no-harmless", "--out", "both.leery"),
    )
    found = place.json("certify", "both.leery", "--data", "test.npz", "--epsilon", "0.01")
    assert found["false_alarm_rate"] == pytest.approx(0.04)
    assert found["false_alarm_rate_of_the_sentinel"] == pytest.approx(0.01)
    described = place.json("inspect", "both.leery")
    assert described["sentinel"]["share"] == 0.25
    assert described["sentinel"]["training"] == {"epsilon": 0.05, "epochs": 6, "images": 3000}
    shown = " ".join(place.run("inspect", "both.leery").split())
    assert "up to 0.05 of the pixel range, 6 epochs, 3,000 images" in shown
    left = sorted(path.name for path in place.folder.iterdir())
    assert not [name for name in left if "parts" in name]


def test_the_shipped_sentinel_is_added_and_tried(place: Place, digits: Batch) -> None:
    arguments = ("--pretrained", "mnist", "--clean", "held.npz", "--fpr", "0.04", "--right-only")
    made = place.json("certify", "train", "plain.leery", *arguments, "--out", "shipped.leery")
    detector = Detector.load(place.folder / "shipped.leery", pretrained("mnist").model)
    assert detector.sentinel_ is not None
    few = digits[0][:1000]
    classes = pretrained("mnist").model(few).argmax(1)
    certified = detector.sentinel_.certify(few, classes, epsilon=0.3).mean()
    assert made["tried"] == {"images": 1000, "linf_epsilon": 0.3, "certified": certified}
    assert certified > 0.5
    assert detector.sentinel_.training_ == SentinelTraining(0.3, 80, 55_000)


def test_a_sentinel_that_certifies_hardly_anything_is_reported(place: Place) -> None:
    _, said = place.both(
        *("certify", "train", "plain.leery", "--train", "train.npz", "--clean", "held.npz"),
        *("--fpr", "0.04", "--epochs", "1", "--out", "useless.leery"),
    )
    assert "warning: the sentinel certifies hardly any of 1,000 clean images" in said
    assert "train on more images, for more epochs or for a smaller --epsilon" in said


def test_promises_that_a_new_calibration_drops_are_named(place: Place, digits: Batch) -> None:
    path = place.folder / "strict.leery"
    detector = Detector.load(place.folder / "plain.leery", pretrained("mnist").model)
    held = digits[0][:1500], digits[1][:1500]
    with pytest.warns(LeeryWarning, match="that the combiner was fitted to"):
        detector.calibrate(*held, fpr=0.04, promise="pac", harmless={})
    detector.save(path)
    arguments = ("certify", "train", "strict.leery", "--pretrained", "mnist", "--fpr", "0.04")
    _, said = place.both(*arguments, "--clean", "held.npz", "--out", "loose.leery")
    assert (
        "warning: the earlier false-alarm rate held for images that the classifier gets right "
        "(--right-only), with confidence 0.95; the new one does not"
    ) in said
    kept = ("--clean", "held.npz", "--right-only", "--out", "kept.leery")
    _, said = place.both(*arguments, *kept)
    assert "--right-only" not in said
    assert "with confidence 0.95" in said


def test_certified_false_alarms_are_counted_apart(place: Place) -> None:
    arguments = ("certify", "train", "plain.leery", "--pretrained", "mnist", "--clean", "held.npz")
    place.run(*arguments, "--fpr", "0.4", "--no-harmless", "--right-only", "--out", "eager.leery")
    arguments = ("certify", "eager.leery", "--data", "test.npz", "--epsilon", "0.1", "0.2")
    shares = {(row["what"], row["epsilon"]): row for row in place.json(*arguments)["shares"]}
    calm = [shares["certified, not flagged", epsilon]["share"] for epsilon in (0.1, 0.2)]
    assert calm[0] < shares["certified", 0.1]["share"]
    shown = " ".join(place.run(*arguments).split())
    assert f"Certified and not flagged: {calm[0]:.1%} at 0.1, {calm[1]:.1%} at 0.2." in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train", "plain.leery", "--clean", "held.npz", "--out", "x.leery"),
            "expected --train or --pretrained, got neither",
        ),
        (
            (
                *("train", "plain.leery", "--clean", "held.npz", "--out", "x.leery"),
                *("--pretrained", "mnist", "--epochs", "2"),
            ),
            "none of --epsilon, --epochs",
        ),
        (
            (
                *("train", "plain.leery", "--clean", "held.npz", "--out", "x.leery"),
                *("--pretrained", "cifar-10", "--fpr", "0.04"),
            ),
            "expected --pretrained mnist or fashion-mnist, got 'cifar-10'",
        ),
        (
            ("guard.leery", "--data", "test.npz", "--epsilon", "-0.1"),
            "a finite epsilon of at least 0",
        ),
        (("guard.leery", "--data", "train.npz", "--epsilon", "0.1"), "has not learned from"),
        (
            ("lost.leery", "--data", "test.npz", "--epsilon", "0.1"),
            "at lost.leery, got none",
        ),
        (
            ("train", "plain.leery", "--train", "train.npz", "--clean", "held.npz"),
            "no file at plain.leery",
        ),
        (
            (
                *("train", "plain.leery", "--train", "train.npz", "--clean", "held.npz"),
                *("--out", "x.leery", "--sentinel-share", "2", "--epochs", "1"),
            ),
            "expected --sentinel-share between 0 and 1, got 2",
        ),
        # Refused before the training, which would take minutes.
        (
            (
                *("train", "plain.leery", "--train", "train.npz", "--clean", "train.npz"),
                *("--out", "x.leery"),
            ),
            "not among the training images, got 3,000 of 3,000 that are; name others with --clean",
        ),
        (
            (
                *("train", "plain.leery", "--train", "train.npz", "--clean", "held.npz"),
                *("--out", "x.leery", "--fpr", "0.001"),
            ),
            "expected at least 1,999 usable clean images",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    place: Place, arguments: tuple[str, ...], message: str
) -> None:
    said = place.run("certify", *arguments, code=1)
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (place.folder / "x.leery").exists()


def test_another_classifier_s_sentinel_is_refused(place: Place) -> None:
    said = place.run(
        *("certify", "guard.leery", "--data", "test.npz", "--epsilon", "0.1"),
        *("--model", "net:empty"),
        code=1,
    )
    assert "expected the classifier that guard.leery was fitted on" in said


def test_the_help_of_both_commands(place: Place) -> None:
    assert "leery certify DETECTOR" in place.run("certify", "--help")
    for name in ("images", "train"):
        assert "Examples" in place.run("certify", name, "--help")


def test_labels_are_needed(place: Place) -> None:
    with np.load(place.folder / "test.npz") as stored:
        np.savez(place.folder / "bare.npz", images=stored["images"])
    said = place.run("certify", "guard.leery", "--data", "bare.npz", "--epsilon", "0.1", code=1)
    assert "label" in said


def test_an_attacker_who_knows_the_detector(place: Place) -> None:
    arguments = ("--data", "test.npz", "--adaptive", "0.05", "--adaptive-images", "20")
    found = place.json("evaluate", "guard.leery", *arguments, "--adaptive-steps", "20")
    assert set(found) == {"adaptive"}
    own = found["adaptive"]
    assert (own["epsilon"], own["steps"], own["images"]) == (0.05, 20, 20)
    assert sum(own["by"].values()) == round(own["evaded"]["estimate"] * 20)
    # What is certified is not evaded.
    assert own["evaded"]["estimate"] + own["certified"]["estimate"] <= 1
    assert own["certified"]["estimate"] > 0
    said = " ".join(place.run("evaluate", "plain.leery", *arguments).split())
    assert "evaded it on" in said
    assert said.endswith(
        "with L-infinity changes of at most 0.05; a stronger one may evade it on more."
    )
    assert "Certified" not in said
    both = place.json(
        *("evaluate", "plain.leery", *arguments, "--attack", "fgsm:0.1", "--adaptive-steps", "2")
    )
    assert set(both) == {"rows", "false_alarms", "adaptive"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--adaptive", "-1"), "an epsilon above 0"),
        (("--adaptive", "0"), "an epsilon above 0"),
        (("--adaptive", "inf"), "a finite epsilon"),
        (("--adaptive", "0.1", "--adaptive-norm", "l3"), "one of the norms"),
        (("--adaptive", "0.1", "--adaptive-steps", "0"), "steps"),
        (("--adaptive", "0.1", "--adaptive-restarts", "0"), "restarts"),
        (("--adaptive", "0.1", "--adaptive-images", "0"), "images"),
        ((), "expected at least one attack, got none; add --attack pgd:0.1"),
    ],
)
def test_an_attacker_without_means_is_refused(
    place: Place, option: tuple[str, ...], message: str
) -> None:
    said = place.run("evaluate", "plain.leery", "--data", "test.npz", *option, code=1)
    assert message in said
    assert len(said.strip().splitlines()) == 1
