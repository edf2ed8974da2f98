"""Atomic file writes, through a temporary file that is then renamed, and faults of reading."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from leery.errors import OutputError, machine_error, names_a_wrong_file, raise_machine_fault

__all__ = [
    "atomic_stream",
    "below",
    "check_opens",
    "check_output",
    "make_folder",
    "opens",
    "raise_reading_fault",
    "write_atomically",
    "write_once",
]

T = TypeVar("T")


def below(parts: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The parts named ``prefix/<name>``, by name."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): part for name, part in parts.items() if name.startswith(start)
    }


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file completely or not at all, through a temporary file that is then renamed.

    Args:
        path: path of the file; its folder must exist.
        content: the bytes, or text that is encoded as UTF-8.

    Raises:
        OutputError: when the folder or the file cannot be written; an older file is untouched.
    """
    with atomic_stream(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_once(path: Path, content: str) -> None:
    """Write a file completely, or leave it if there is one; of several processes, one writes it.

    Raises:
        OutputError: when the folder cannot be written.
    """
    own = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_atomically(own, content)
    try:
        os.link(own, path)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links, where the last one of several processes wins.
        if not path.exists():
            own.replace(path)
    finally:
        own.unlink(missing_ok=True)


@contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """Open a stream whose content becomes the file unless the block raises.

    Args:
        path: path of the file; its folder must exist.

    Raises:
        OutputError: when the folder or the file cannot be written; an older file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        message = (
            f"expected to write {path}, got: {error.strerror or error}; "
            "choose a writable folder with enough free space"
        )
        raise OutputError(message) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_output(path: Path) -> None:
    """Create the folder of an output file and check that it is writable.

    Raises:
        OutputError: when the folder is not writable or the path is itself a folder.
    """
    make_folder(path.parent)
    if path.is_dir():
        message = f"expected {path} to be a file, got a folder; choose another path"
        raise OutputError(message)


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, and check that a file can be written into it.

    Raises:
        OutputError: when it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Hidden, since another process may read or check the folder at the same time.
        probe = path / f".probe.{os.urandom(8).hex()}"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        message = (
            f"expected {path} to be a writable folder, got: {error.strerror or error}; "
            "choose another one"
        )
        raise OutputError(message) from error
    return path


def raise_reading_fault(path: Path, error: Exception) -> None:
    """Raise if a file could not be read for a reason that is not the file's.

    Raises:
        MachineError: when it could not.
        MemoryError: the error itself.
    """
    if names_a_wrong_file(error):
        return
    if isinstance(error, OSError) and error.errno is not None:
        raise machine_error(os.strerror(error.errno), f"to read {path}") from error
    raise_machine_fault(error)


def opens(path: Path) -> bool:
    """True if a file can be opened, False if it is missing or a folder.

    Raises:
        MachineError: when it cannot be opened for another reason, such as a lost network.
    """
    try:
        check_opens(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    except OSError as error:
        raise machine_error(error.strerror or str(error), f"to read {path}") from error
    return True


def check_opens(path: str | os.PathLike[str]) -> None:
    """Raise an OSError if a file cannot be opened; safetensors calls any such file missing."""
    Path(path).open("rb").close()
