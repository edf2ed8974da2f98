"""The finished parts of some work, in a folder, so that work that was cut off goes on.

Whatever kills the process, a part is whole or absent, and one process at a time works in the
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
    """The folder beside an output in which its finished parts lie until all are there."""
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
    """The finished parts of some work, in a folder that is this process's own meanwhile.

    Args:
        folder: of the parts; made where it is missing.
        identity: of the work.
        rows: the number of rows of each part.
        resume: whether to go on with what is there; else it is removed.
        count_rows: the number of rows in the file of a part.
        suffix: of the files.

    Yields:
        The unbroken row of whole parts from the first on, to which the caller appends.

    Raises:
        InputError: when the folder holds anything else, or was left by other work.
        OutputError: when another process works in it.
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
                # Nothing to go on with.
                shutil.rmtree(folder)
            raise


def discard_parts(folder: Path) -> None:
    """Remove a folder of parts once they are put together."""
    # The manifest goes first: what is left of the folder is then nothing to resume.
    (folder / _MANIFEST).unlink()
    shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone.

    Raises:
        OutputError: when another process has it.
    """
    # Not everywhere, and only needed here.
    import fcntl  # noqa: PLC0415

    with ExitStack() as stack:
        while True:
            make_folder(folder)
            try:
                lock = stack.enter_context((folder / _LOCK).open("w"))
            except FileNotFoundError:
                # Another run ended in between, and took the folder with it.
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                message = (
                    f"expected {folder} for one run alone, got another that is at work in it; wait "
                    "for it or name another --out"
                )
                raise OutputError(message) from error
            if os.fstat(lock.fileno()).st_nlink:
                break
        yield


def _finished(folder: Path, identity: str, suffix: str, *, resume: bool) -> bool:
    """Whether the folder has parts of this work to go on with.

    Raises:
        InputError: when they are of other work.
    """
    manifest = folder / _MANIFEST
    if not (resume and manifest.is_file() and (folder / part_name(0, suffix)).is_file()):
        return False
    if manifest.read_text() != _manifest(identity):
        message = (
            f"expected the inputs and settings of the run that left {folder}, got others, files "
            "that were changed since, or another program; run without --resume to do all anew"
        )
        raise InputError(message)
    return True


def _whole(
    folder: Path, rows: Sequence[int], count_rows: Callable[[Path], int], suffix: str
) -> list[Path]:
    """The unbroken row of whole parts from the first on."""
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
    """Refuse a folder that holds anything but what a run leaves."""
    own = re.compile(rf"run\.json|lock|\d{{8}}{re.escape(suffix)}|\..*\.[0-9a-f]{{16}}")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    foreign = [name for name in names if not own.fullmatch(name)]
    if foreign:
        message = (
            f"expected {folder} to hold parts of a run only, got {listed(foreign)}; move that away "
            "or name another --out"
        )
        raise InputError(message)
