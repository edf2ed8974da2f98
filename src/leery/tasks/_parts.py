"""Folders of the finished parts of a computation, from which it can be resumed.

However the process ends, a part is complete or absent, and only one process at a time uses the
folder.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from leery._files import make_folder, write_atomically
from leery.errors import InputError, OutputError, listed

__all__ = ["discard_parts", "open_parts", "part_name", "parts_folder"]

_MANIFEST, _LOCK = "run.json", "lock"


def parts_folder(out: Path) -> Path:
    """The folder next to an output that holds its finished parts until all are complete."""
    return out.with_name(f"{out.name}.parts")


def part_name(number: int, suffix: str = ".parquet") -> str:
    """The file name of a part, which sorts by its number."""
    return f"{number:08d}{suffix}"


@contextmanager
def open_parts(
    folder: Path,
    identity: str,
    rows: Sequence[int],
    *,
    resume: bool,
    count_rows: Callable[[Path], int],
    suffix: str = ".parquet",
) -> Iterator[list[Path]]:
    """Open a folder of finished parts for exclusive use by this process.

    Args:
        folder: folder of the parts, created if missing.
        identity: identity of the computation.
        rows: the number of rows of each part.
        resume: True to use the parts that are there, False to remove them.
        count_rows: function that returns the number of rows in the file of a part.
        suffix: suffix of the files.

    Yields:
        The complete parts from the first one up to the first gap, to which the caller appends.

    Raises:
        InputError: when the folder holds other files, or parts of another computation.
        OutputError: when another process uses it.
    """
    _check_own(folder, suffix)
    with _locked(folder):
        goes_on = _finished(folder, identity, suffix, resume=resume)
        whole = _whole(folder, rows, count_rows, suffix) if goes_on else []
        for other in set(folder.glob(f"*{suffix}")) - set(whole):
            other.unlink()
        write_atomically(folder / _MANIFEST, _manifest(identity))
        try:
            yield whole
        except BaseException:
            if not whole:
                # Nothing to resume from.
                shutil.rmtree(folder)
            raise


def discard_parts(folder: Path) -> None:
    """Remove a folder of parts once they are merged."""
    # The manifest is removed first, so that a partly removed folder is not resumed.
    (folder / _MANIFEST).unlink()
    shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder, created if missing, for this process.

    Raises:
        OutputError: when another process has it.
    """
    # Not available on all platforms, and only needed here.
    import fcntl  # noqa: PLC0415

    with ExitStack() as stack:
        while True:
            make_folder(folder)
            try:
                lock = stack.enter_context((folder / _LOCK).open("w"))
            except FileNotFoundError:
                # Another run ended meanwhile and removed the folder.
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                message = (
                    f"expected {folder} to be unused, got another run that is using it; wait "
                    "for it or pass another --out"
                )
                raise OutputError(message) from error
            if os.fstat(lock.fileno()).st_nlink:
                break
        yield


def _finished(folder: Path, identity: str, suffix: str, *, resume: bool) -> bool:
    """True if the folder holds parts from which this computation can be resumed.

    Raises:
        InputError: when they belong to another computation.
    """
    manifest = folder / _MANIFEST
    if not (resume and manifest.is_file() and (folder / part_name(0, suffix)).is_file()):
        return False
    if manifest.read_text() != _manifest(identity):
        message = (
            f"expected the inputs and settings of the run that wrote {folder}, got others, files "
            "changed since, or another version of the code; run without --resume to start over"
        )
        raise InputError(message)
    return True


def _whole(
    folder: Path, rows: Sequence[int], count_rows: Callable[[Path], int], suffix: str
) -> list[Path]:
    """The complete parts from the first one up to the first gap."""
    parts: list[Path] = []
    for expected in rows:
        part = folder / part_name(len(parts), suffix)
        if not part.is_file() or count_rows(part) != expected:
            break
        parts.append(part)
    return parts


def _manifest(identity: str) -> str:
    return json.dumps({"leery": identity})


def _check_own(folder: Path, suffix: str) -> None:
    """Raise if a folder holds anything but the files of a run."""
    own = re.compile(rf"run\.json|lock|\d{{8}}{re.escape(suffix)}|\..*\.[0-9a-f]{{16}}")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    foreign = [name for name in names if not own.fullmatch(name)]
    if foreign:
        message = (
            f"expected only parts of a run in {folder}, got {listed(foreign)}; move these away "
            "or pass another --out"
        )
        raise InputError(message)
