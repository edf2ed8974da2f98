"""What a part depends on: facts, the code it imports, and no other code."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leery.tasks import _identity, identity_of


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module that imports another, and a third that nobody imports."""
    (tmp_path / "mine_top.py").write_text("import json\nfrom mine_below import number\n")
    (tmp_path / "mine_below.py").write_text("number = 1\n")
    (tmp_path / "mine_beside.py").write_text("number = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("mine_top", "mine_below", "mine_beside"):
        sys.modules.pop(name, None)
    _identity._code.cache_clear()


def identity(facts: object = 1) -> str:
    _identity._code.cache_clear()
    for name in ("mine_top", "mine_below", "mine_beside"):
        importlib.import_module(name)
    return identity_of(facts, ["mine_top"])


def test_the_facts_count(modules: Path) -> None:
    assert modules.is_dir()
    assert identity([1, {"a": 2}]) == identity([1, {"a": 2}])
    assert identity([1, {"a": 2}]) != identity([1, {"a": 3}])


def test_code_that_is_imported_counts_and_other_code_does_not(modules: Path) -> None:
    before = identity()
    (modules / "mine_beside.py").write_text("number = 2\n")
    assert identity() == before
    (modules / "mine_below.py").write_text("number = 2\n")
    changed = identity()
    assert changed != before
    (modules / "mine_top.py").write_text("from mine_below import number as other\n")
    assert identity() not in (before, changed)


def test_code_that_is_imported_inside_a_function_counts_before_it_is_loaded(modules: Path) -> None:
    (modules / "mine_package").mkdir()
    (modules / "mine_package" / "__init__.py").write_text("raise RuntimeError\n")
    late = modules / "mine_package" / "late.py"
    late.write_text("number = 1\n")
    text = "def of(a):\n    from mine_package.late import number\n    return number\n"
    (modules / "mine_top.py").write_text(text)
    before = identity()
    assert "mine_package" not in sys.modules
    late.write_text("number = 2\n")
    assert identity() != before


@pytest.mark.parametrize("package", ["mine_plain", "mine_plain.deep"])
def test_a_package_without_init_counts_the_same_before_and_after_it_is_loaded(
    modules: Path, package: str
) -> None:
    folder = modules.joinpath(*package.split("."))
    folder.mkdir(parents=True)
    (folder / "late.py").write_text("number = 1\n")
    text = f"def of(a):\n    from {package}.late import number\n    return number\n"
    (modules / "mine_top.py").write_text(text)
    before = identity()
    importlib.import_module(f"{package}.late")
    assert identity() == before
    (folder / "late.py").write_text("number = 2\n")
    assert identity() != before
    for name in [name for name in sys.modules if name.startswith("mine_plain")]:
        del sys.modules[name]


def test_comments_docstrings_and_layout_do_not_count(modules: Path) -> None:
    (modules / "mine_below.py").write_text("def number(a):\n    return a + 1\n")
    before = identity()
    text = (
        '"""A module."""\n\ndef number(a): # one more\n    """Its next."""\n\n    return (a + 1)\n'
    )
    (modules / "mine_below.py").write_text(text)
    assert identity() == before
    (modules / "mine_below.py").write_text(text.replace("a + 1", "a + 2"))
    assert identity() != before


def sources_of(module: str) -> set[str]:
    """The modules whose code counts for a module."""
    sources: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _identity._own_source(name)
        if path is not None and name not in sources:
            sources.add(name)
            package = path.name == "__init__.py"
            waiting += _identity._imported(path.read_bytes(), name, package=package)
    return sources


def test_a_part_of_leery_s_own_hashes_what_it_imports() -> None:
    found = sources_of("leery.metrics")
    assert {"leery.metrics", "leery.metrics.closeness", "leery.models", "leery.tuning"} <= found
    # It says "from leery import data", which does not use the package itself.
    assert "leery.data" in sources_of("leery.classifiers")
    assert not {"leery", "leery.detector"} & sources_of("leery.classifiers")
    # It says "from leery import Detector".
    assert "leery.detector" in sources_of("leery.study._stages")


def test_the_version_of_a_library_of_the_classifier_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = identity_of(1, ["rich.console"]), identity_of(1, ["json"])
    monkeypatch.setattr(_identity, "version", lambda name: f"9 of {name}" * (name == "rich"))
    first = identity_of(1, ["rich.console"])
    monkeypatch.setattr(_identity, "version", lambda name: f"8 of {name}" * (name == "rich"))
    assert len({first, identity_of(1, ["rich.console"]), before[0]}) == 3
    assert identity_of(1, ["json"]) == identity_of(1, ["json.decoder"]) != before[1]
