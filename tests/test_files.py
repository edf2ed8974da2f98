"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from leery._files import make_folder, write_atomically
from leery.errors import OutputError


def test_a_file_is_replaced_whole_with_the_users_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    (tmp_path / "usual").touch()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OutputError, match=r"expected to write .*file, got: No space left on device; choose a"
    ):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am a file")
    with pytest.raises(OutputError, match="expected to write .*, got: Not a directory"):
        write_atomically(tmp_path / "file" / "inner", "x")
    with pytest.raises(
        OutputError, match="file/inner to be a writable folder, got: .*; choose another one"
    ):
        make_folder(tmp_path / "file" / "inner")
    assert list(make_folder(tmp_path / "a" / "b").iterdir()) == []
