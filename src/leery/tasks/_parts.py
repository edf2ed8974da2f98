"""Folders of the finished parts of a computation, from which it can be resumed.

However a process ends, a part is complete or absent. A process that computes all parts uses the
folder alone; processes that compute a shard each use it together.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from leery._files import atomic_stream, make_folder, opens, write_atomically, write_once
from leery.errors import InputError, OutputError, listed

__all__ = ["Parts", "Shard", "open_parts", "parts_folder"]

_MANIFEST, _LOCK = "run.json", "lock"

_IDENTITY, _SHARED = "leery", "shards"
"""What the manifest says: the identity of the computation, and whether shards began it."""


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of the parts of a computation.

    Attributes:
        number: number of the shard, from 1 to ``count``.
        count: number of shards.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that a text such as "2/3" names.

        Raises:
            InputError: when the text has another form, or the number is outside 1 to the count.
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        shard = cls(int(found[1]), int(found[2])) if found else None
        if shard is None or not 1 <= shard.number <= shard.count:
            message = (
                f"expected a shard I/N with I from 1 to N, such as 2/3, got {text!r}; correct it"
            )
            raise InputError(message)
        return shard

    def own(self, total: int) -> range:
        """The numbers of this shard's parts, out of ``total`` parts; they are consecutive."""
        first, last = (total * share // self.count for share in (self.number - 1, self.number))
        return range(first, last)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class Parts:
    """The parts of a computation, one file each.

    Attributes:
        folder: folder in which parts are written.
        identity: identity of the computation. Files are named after it, so that a process that
            outlives its run does not spoil another run in the same folder.
        rows: number of rows of each part.
        count_rows: function that returns the number of rows in the file of a part.
        suffix: suffix of the files.
        others: further folders in which finished parts are looked up.
    """

    folder: Path
    identity: str
    rows: Sequence[int]
    count_rows: Callable[[Path], int]
    suffix: str
    others: Sequence[Path] = ()

    @contextmanager
    def marked(self) -> Iterator[str]:
        """Keep a file in the folder for a block, whose name another process can look for."""
        mark = self.folder / f".mark.{os.urandom(8).hex()}"
        mark.touch()
        try:
            yield mark.name
        finally:
            mark.unlink(missing_ok=True)

    def check_shared(self, mark: str) -> None:
        """Raise unless this process sees the folder that another one has marked.

        Raises:
            InputError: when it does not see it.
            OutputError: when it cannot write into it.
        """
        if not (self.folder / mark).is_file():
            message = (
                f"expected {self.folder.resolve()} to be a folder that all machines share, got "
                "none on this one; put the output on a shared file system"
            )
            raise InputError(message)
        make_folder(self.folder)

    def numbers(self, shard: Shard | None = None) -> range:
        """The numbers of all parts, or of a shard's."""
        return range(len(self.rows)) if shard is None else shard.own(len(self.rows))

    def finished(self, number: int) -> Path | None:
        """The file of a part, or None if it is not finished.

        Raises:
            MachineError: when a file is there but cannot be read.
        """
        name = self._name(number)
        for folder in (self.folder, *self.others):
            file = folder / name
            if opens(file) and self.count_rows(file) == self.rows[number]:
                return file
        return None

    def missing(self, shard: Shard | None = None) -> list[int]:
        """The numbers of the parts that are not finished, of all parts or of a shard's."""
        return [number for number in self.numbers(shard) if self.finished(number) is None]

    @contextmanager
    def writing(self, number: int) -> Iterator[BinaryIO]:
        """Open a stream whose content becomes the file of a part unless the block raises."""
        with atomic_stream(self.folder / self._name(number)) as stream:
            yield stream

    def files(self, shard: Shard | None = None) -> list[Path]:
        """The files of all parts, or of a shard's.

        Raises:
            InputError: when some are not finished.
        """
        found = {number: self.finished(number) for number in self.numbers(shard)}
        missing = [number for number, file in found.items() if file is None]
        if missing:
            message = (
                f"expected parts 1-{len(self.rows)} in {self.folder}, got no file for "
                f"{_ranges(missing)}; run the shards again; each computes only its missing parts"
            )
            raise InputError(message)
        return [file for file in found.values() if file is not None]

    def discard(self) -> None:
        """Remove the folder, once the parts are merged."""
        # A removal that is interrupted leaves a manifest that says so, which goes after the parts.
        manifest = self.folder / _MANIFEST
        write_atomically(manifest, json.dumps({_IDENTITY: None, _SHARED: False}))
        try:
            for part in self.folder.glob(f"*{self.suffix}"):
                part.unlink(missing_ok=True)
            manifest.unlink(missing_ok=True)
        except OSError:
            return
        # A process that outlives its run may still write into it.
        shutil.rmtree(self.folder, ignore_errors=True)

    def _name(self, number: int) -> str:
        """The file name of a part; names sort as the numbers do."""
        return f"{number:08d}-{self.identity[:16]}{self.suffix}"


def _ranges(numbers: Sequence[int]) -> str:
    """Part numbers, counted from 1, as ranges such as "2, 5-7"."""
    found = []
    for _, pairs in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        stretch = [number + 1 for _, number in pairs]
        found.append(f"{stretch[0]}-{stretch[-1]}" if len(stretch) > 1 else str(stretch[0]))
    return listed(found)


def parts_folder(out: Path) -> Path:
    """The folder next to an output that holds its finished parts until all are complete."""
    return out.with_name(f"{out.name}.parts")


@contextmanager
def open_parts(
    folder: Path,
    identity: str,
    rows: Sequence[int],
    *,
    resume: bool,
    count_rows: Callable[[Path], int],
    suffix: str = ".parquet",
    shared: bool = False,
    others: Sequence[Path] = (),
) -> Iterator[Parts]:
    """Open a folder of finished parts.

    Args:
        folder: folder of the parts, created if missing.
        identity: identity of the computation.
        rows: the number of rows of each part.
        resume: True to use the parts that are there, False to remove them.
        count_rows: function that returns the number of rows in the file of a part.
        suffix: suffix of the files.
        shared: True to use the folder together with other processes that pass True, and to resume;
            False to use it alone.
        others: further folders with parts of the same computation, which are only read.

    Raises:
        InputError: when a folder holds other files, or parts of another computation.
        OutputError: when another process uses the folder.
    """
    for place in (folder, *others):
        _check_own(place, suffix)
    for place in others:
        _check_manifest(place, identity)
    with _locked(folder, shared=shared) as lock:
        _begin(folder, identity, suffix, resume=resume or shared, shared=shared)
        try:
            yield Parts(folder, identity, rows, count_rows, suffix, others)
        except BaseException:
            if _alone(lock) and not any(folder.glob(f"*{suffix}")):
                # Nothing to resume from.
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _begin(folder: Path, identity: str, suffix: str, *, resume: bool, shared: bool) -> None:
    """Make a folder ready for a computation.

    Raises:
        InputError: when it is to be resumed and the parts belong to another computation, or it is
            not to be resumed and the parts are those of shards.
    """
    # Copied from another machine, so that they must not be discarded without a word.
    copied = not (folder / _MANIFEST).exists() and any(folder.glob(f"*{suffix}"))
    manifest = json.dumps({_IDENTITY: identity, _SHARED: shared or copied})
    if resume:
        # Without a manifest, as in a folder into which parts were copied, their names tell whose
        # they are.
        write_once(folder / _MANIFEST, manifest)
        _check_manifest(folder, identity)
        if shared and not _manifest(folder).get(_SHARED):
            write_atomically(folder / _MANIFEST, manifest)
        return
    if copied or _manifest(folder).get(_SHARED):
        message = (
            f"expected --merge or --resume, because shards left parts in {folder}, got neither; "
            "pass one, or remove the folder to start over"
        )
        raise InputError(message)
    for part in folder.glob(f"*{suffix}"):
        part.unlink()
    write_atomically(folder / _MANIFEST, manifest)


def _manifest(folder: Path) -> Mapping[str, object]:
    """The content of a folder's manifest; empty if it is missing or was not written by leery."""
    try:
        found = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_manifest(folder: Path, identity: str) -> None:
    """Raise if a folder holds no parts, or those of another computation.

    Raises:
        InputError: when it does.
    """
    if not (folder / _MANIFEST).is_file():
        message = f"expected the parts of a run in {folder}, got none; name the folder of a shard"
        raise InputError(message)
    found = _manifest(folder).get(_IDENTITY, "")
    if found is None:
        message = (
            f"expected the parts of a run in {folder}, got the rest of one whose output is "
            "complete; use that, or remove the folder to start over"
        )
        raise InputError(message)
    if found != identity:
        message = (
            f"expected the inputs, settings, device and versions with which {folder} was written, "
            "got different ones, or a file has changed since; use the original ones (cp -p and "
            "rsync -a keep times), or remove the folder to start over"
        )
        raise InputError(message)


@contextmanager
def _locked(folder: Path, *, shared: bool) -> Iterator[int]:
    """Lock a folder, created if missing, for this process or for those that share it.

    Yields:
        The file descriptor of the lock.

    Raises:
        OutputError: when another process uses it, and not both share it.
    """
    # Not available on all platforms, and only needed here.
    import fcntl  # noqa: PLC0415

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with ExitStack() as stack:
        while True:
            make_folder(folder)
            try:
                # On a network file system, a shared lock needs a readable file.
                lock = stack.enter_context((folder / _LOCK).open("a+"))
            except FileNotFoundError:
                # Another run ended meanwhile and removed the folder.
                continue
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = (
                    f"expected {folder} to be unused, got another run that is using it; wait "
                    "for it or pass another --out"
                )
                raise OutputError(message) from error
            except OSError as error:
                message = (
                    f"expected a file system that can lock files (flock) at {folder}, got: "
                    f"{error.strerror or error}; mount it with locks or pass another --out"
                )
                raise OutputError(message) from error
            if _is_at(folder / _LOCK, lock.fileno()):
                break
        yield lock.fileno()


def _is_at(path: Path, opened: int) -> bool:
    """True if an open file is still the one at the path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def _alone(lock: int) -> bool:
    """True if no other process holds a lock; this process then holds it alone."""
    import fcntl  # noqa: PLC0415 - as above

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _check_own(folder: Path, suffix: str) -> None:
    """Raise if a folder holds anything but the files of a run."""
    own = re.compile(
        rf"run\.json|lock|\d{{8}}-[0-9a-f]{{16}}{re.escape(suffix)}|\..*\.[0-9a-f]{{16}}|\.nfs.*"
    )
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    foreign = [name for name in names if not own.fullmatch(name)]
    if foreign:
        message = (
            f"expected only parts of a run in {folder}, got {listed(foreign)}; move these away "
            "or pass another --out"
        )
        raise InputError(message)
