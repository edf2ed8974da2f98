"""What the documentation shows runs, and its tables are those that were measured."""

import contextlib
import importlib.util
import io
import itertools
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch

from leery.cli import main
from leery.metrics import METRICS, RECOMMENDED_METRICS, make_metrics

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r'```(python|console)(?: title="([^"]+)")?\n(.*?)```', re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Kind, title and code of each block that is to be run."""
    return BLOCK.findall(page.read_text())


@contextlib.contextmanager
def own_modules() -> Iterator[None]:
    """Modules of the folder one is in can be imported, and are forgotten afterwards."""
    # Of the pages' own name there may be one of another test.
    another = sys.modules.pop("net", None)
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
        sys.modules.pop("net", None)
        if another is not None:
            sys.modules["net"] = another


SLOW, ELSEWHERE = ("arena",), ("cluster",)
"""Pages whose code takes long, and those whose code tests/cluster runs."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page.stem in SLOW else [], id=page.stem)
        for page in PAGES
        if blocks(page) and page.stem not in ELSEWHERE
    ],
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    names: dict[str, object] = {}
    with (
        contextlib.chdir(tmp_path),
        own_modules(),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(shown),
        torch.random.fork_rng(devices=[]),
    ):
        for kind, title, code in blocks(page):
            if title:
                Path(title).write_text(code)
            elif kind == "python":
                exec(code, names)  # noqa: S102 - our own pages
            else:
                for line in code.splitlines():
                    console(line)
    if page.stem == "tutorial":
        check_tutorial(shown.getvalue(), tmp_path)


def console(line: str) -> None:
    """A line of a console block: leery's commands and settings, nothing else."""
    assert line.startswith("$ ")
    first, *rest = shlex.split(line.removeprefix("$ "))
    if first == "export":
        for setting in rest:
            name, _, value = setting.partition("=")
            os.environ[name] = value
        return
    assert first == "leery"
    with mock.patch.object(sys, "argv", [first, *rest]), pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0


def check_tutorial(shown: str, folder: Path) -> None:
    """What the tutorial says of its own output."""
    clean, adversarial = (
        float(share) for share in re.findall(r"([\d.]+)% of (?:clean|adv)", shown)
    )
    # 1,000 images calibrate and 1,000 are judged: the standard error is below 1 %.
    assert clean < 9
    assert adversarial > 2 * clean
    assert "input of out" in shown
    assert len((folder / "scores.csv").read_text().splitlines()) == 1001


def test_the_way_to_a_verdict_takes_fewer_than_25_lines() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text()
    install = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[0]
    detector = page.split("## The detector, in Python")[1].split("Each verdict can be asked")[0]
    code = "\n".join(part for _, _, part in BLOCK.findall(detector))
    lines = [line for line in (install + code).splitlines() if line.strip()]
    assert "detector.calibrate(" in code
    assert "detector.judge(" in code
    assert len(lines) < 25


def tables() -> object:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["choosing", "arena", "certificate", "threats", "cluster"])
def test_the_tables_of_a_page_are_those_of_the_measurements(name: str) -> None:
    module = tables()
    page = ROOT / "docs" / f"{name}.md"
    assert module.filled(page) == page.read_text()  # type: ignore[attr-defined]
    shown = {"choosing": "| FGSM 0.30 |", "arena": "| `leery` |", "certificate": "| DigitNet |"}
    shown |= {"threats": "| selective PGD |", "cluster": "| 2 Ray actors |"}
    assert shown[name] in page.read_text()


def test_the_page_of_metrics_has_each_with_its_family_and_direction() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| (\**)`(\w+)`\1 \| ([\w ]+) \| (\w+) \|", text, re.MULTILINE)
    large = {"larger": "large", "smaller": "small", "both": "both"}
    expected = [
        ("**" * (each.name in RECOMMENDED_METRICS), each.name, each.family, large[each.direction])
        for each in make_metrics(METRICS)
    ]
    assert rows == expected


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_row_of_a_table_stands_on_one_line(page: Path) -> None:
    code = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    lines = code.sub("", page.read_text()).splitlines()
    cells = [len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0 for line in lines]
    for number, (before, own) in enumerate(itertools.pairwise(cells), start=2):
        assert not (before and own) or before == own, f"line {number}: {lines[number - 1]}"
    assert not any(line.rstrip().endswith("|") and not line.startswith("|") for line in lines)


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES]


@pytest.mark.parametrize(
    "name",
    [
        *("tabular", "no_dropout"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("cnn", "transformer")),
    ],
)
def test_an_example_ends_with_its_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    with torch.random.fork_rng(devices=[]):
        # Far fewer training images than by default: the code is tried, not the classifier.
        script["main"](**({} if name == "tabular" else {"count": 1000}))
    *_, head, last = [part for part in capsys.readouterr().out.split("\n\n") if part.strip()]
    rows = last.strip().splitlines()
    assert {"attack", "auc", "found"} <= set(rows[0].split())
    for row in rows[1:]:
        assert 0 <= float(row.split()[-1]) < 0.3
    assert head


def test_the_figure_of_threats_is_that_of_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    module: Any = importlib.import_module("threats")
    assert module.draw(pd.read_csv(module.TABLE)) == module.FIGURE.read_text()


def test_the_numbers_in_the_text_of_threats_are_those_of_its_tables() -> None:
    results = ROOT / "docs" / "results" / "adaptive"
    table = pd.read_csv(results / "threats.csv").set_index("guard")
    robust = pd.read_csv(results / "robust.csv").set_index("attack")
    queries = pd.read_csv(results / "queries.csv").set_index(["guard", "attack"])
    own = queries.share["default", "on a detector of one's own"]
    squares = queries.share["default", "random squares on the score"]
    certified = 100 - table["proved share"] * 100
    evaded = 100 - table["guard share"] * 100
    plain, hardened = "with sentinel", "hardened, with sentinel"
    said = " ".join((ROOT / "docs" / "threats.md").read_text().split())
    for sentence in (
        f"it stays right on [{robust.share['suite']:.2f} of the images]",
        f"the proof covers {table['proved share'][plain]:.2f} of the images, "
        f"{table['proved share'][hardened]:.2f} on the hardened classifier",
        f"It held on {table['classifier share']['default']:.2f} of the digits",
        f"Once the detector gets out, it holds on {table['guard share']['default']:.2f}",
        f"{certified[plain]:.0f} for the plain and {certified[hardened]:.0f} for the hardened",
        f"evade the guard starting from {evaded[plain]:.0f} and {evaded[hardened]:.0f} of them",
        f"For {own:.2f} of the 50 images one of them gets through",
        f"who see them evade it on [{squares:.2f} of 50 images]",
    ):
        assert sentence in said
    planted = pd.read_csv(results / "active.csv")
    assert "Each attack had three runs, and found every planted point" in said
    assert (planted.found == planted.planted).all()
