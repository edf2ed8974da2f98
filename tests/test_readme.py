"""What the README shows runs and does what it says."""

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from leery.data import load

README = Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"


def loaded(name: str) -> ModuleType:
    """A script of the docs as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_with_fewer_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("leery.data.load", lambda *of: tuple(part[:6000] for part in load(*of)))
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        loaded("picture").example()
    clean, attacked = (float(share) for share in re.findall(r"([\d.]+)%", shown.getvalue()))
    assert clean < attacked / 5
    assert (tmp_path / "guard.leery").is_file()


def test_the_picture_shows_its_numbers() -> None:
    drawn = json.loads((DOCS / "images" / "verdict.json").read_text())
    svg = (DOCS / "images" / "verdict.svg").read_text()
    for kind in ("clean", "attacked"):
        assert f"p = {drawn[kind]['p_value']:.2g}: " in svg
        assert f"{kind}: {drawn[kind]['predicted']} ({drawn[kind]['probability']:.0%})" in svg


@pytest.mark.slow
def test_the_example_and_the_picture_show_what_the_detector_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = loaded("picture")
    monkeypatch.chdir(tmp_path)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        names = picture.example()
    clean, attacked = (float(share) for share in re.findall(r"([\d.]+)%", shown.getvalue()))
    # Beyond 2.5 % of those that are classified right in fewer than one of a thousand draws; one in
    # a hundred is classified wrong, and those may all be flagged.
    assert clean < 3.5
    assert attacked > 50
    assert (tmp_path / "guard.leery").is_file()
    found = picture.facts(names)
    drawn = json.loads((DOCS / "images" / "verdict.json").read_text())
    assert found["clean"]["predicted"] == found["truth"] == drawn["truth"]
    for kind, adversarial in (("clean", False), ("attacked", True)):
        assert found[kind]["adversarial"] == drawn[kind]["adversarial"] == adversarial
        assert found[kind]["predicted"] == drawn[kind]["predicted"]
        assert found[kind]["probability"] == pytest.approx(drawn[kind]["probability"], abs=0.02)
        # The auxiliary network is trained anew, which rounds in another way on another processor.
        largest = max(drawn[kind]["contributions"].values())
        for family, share in drawn[kind]["contributions"].items():
            assert found[kind]["contributions"][family] == pytest.approx(share, abs=largest / 3)


def test_the_tables_are_those_of_the_committed_results() -> None:
    tables = loaded("tables")
    for page in (README, DOCS / "paper.md"):
        assert tables.filled(page) == page.read_text(), page.name
    assert "| FGSM 0.12 |" in README.read_text()
    text = " ".join((DOCS / "paper.md").read_text().split())
    attacked = pd.read_csv(DOCS / "results" / "mnist" / "results.csv")["n_clean"].max()
    assert f"the {attacked:,} that the classifier gets right" in text
    assert f"do not overfit {3 * attacked:,} rows" in text
    assert text.count("**holds**") >= 1


def test_the_shares_of_true_alarms_are_those_of_bayes() -> None:
    text = (DOCS / "practice.md").read_text()
    rows = re.findall(r"^\| 1 in ([\d,]+) \| (\d+) % \| (\d+) % \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for one_in, *shares in rows:
        attacks = 1 / int(one_in.replace(",", ""))
        for rate, share in zip((0.01, 0.001), shares, strict=True):
            assert round(100 * attacks / (attacks + rate * (1 - attacks))) == int(share)


def test_what_it_shows_exists() -> None:
    shown = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert any(name.endswith(".svg") for name in shown)
    for name in shown:
        assert (README.parent / name).exists(), name
