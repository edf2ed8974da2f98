"""Objects that a user names as module:name."""

import sys
from pathlib import Path

import pytest

from leery.models import loaded_object


def test_a_function_may_import_a_module_beside_its_own_when_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lazy_beside.py").write_text("number = 7\n")
    (tmp_path / "lazy_top.py").write_text(
        "def make():\n    from lazy_beside import number\n    return number\n"
    )
    monkeypatch.chdir(tmp_path)
    # As in the installed command, whose module search path has no working folder.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    assert loaded_object("lazy_top:make", "number")() == 7
    for name in ("lazy_top", "lazy_beside"):
        del sys.modules[name]
