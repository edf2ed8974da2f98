"""Files that survive: whatever is written is written beside its name, flushed and renamed."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from leery.errors import OutputError

__all__ = ["atomic_stream", "check_output", "make_folder", "write_atomically"]


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: a temporary file beside it, flushed to disk, then renamed.

    Args:
        path: where the file goes; its folder must exist.
        content: the bytes, or text that is encoded as UTF-8.

    Raises:
        OutputError: when the folder or the file cannot be written; an older file is untouched.
    """
    with atomic_stream(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_stream(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file when the block ends well, and is lost when not.

    Args:
        path: where the file goes; its folder must exist.

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
            f"cannot write {path}: {error.strerror or error}; "
            "name a folder that you may write to and that has room"
        )
        raise OutputError(message) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_output(path: Path) -> None:
    """Create the folder of a file that is to be written, and prove that it can be.

    Raises:
        OutputError: when it cannot.
    """
    make_folder(path.parent)
    if path.is_dir():
        message = f"expected a file to write at {path}, got a folder; name another one"
        raise OutputError(message)


def make_folder(path: Path) -> Path:
    """Create a folder (and its parents) and prove that a file can be written into it.

    Raises:
        OutputError: when it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        message = (
            f"expected a folder that can be written at {path}, got: {error.strerror or error}; "
            "name another one"
        )
        raise OutputError(message) from error
    return path
