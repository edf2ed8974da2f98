"""Folders of data files: the cache, and a folder that the user names."""

import os
import tempfile
from pathlib import Path

import pooch

from leery._files import make_folder
from leery.errors import DataError, OutputError


def cache_folder() -> Path:
    """Folder in which downloads are cached: ``LEERY_CACHE_DIR``, or the user's cache folder."""
    return Path(os.environ.get("LEERY_CACHE_DIR") or pooch.os_cache("leery"))


def local_folder(name: str, root: str | os.PathLike[str] | None) -> Path | None:
    """The folder that the user names for a dataset; None if there is none.

    Args:
        name: name of the dataset.
        root: the folder or its parent; by default the value of ``LEERY_DATA_DIR``.

    Raises:
        DataError: when there is no such folder.
    """
    given = root or os.environ.get("LEERY_DATA_DIR")
    if not given:
        return None
    folder = Path(given)
    if not folder.is_dir():
        message = (
            f"expected a folder of data files at {folder}, got none; "
            "correct --data-dir or LEERY_DATA_DIR, or leave it out"
        )
        raise DataError(message)
    own = folder / name
    return own if own.is_dir() else folder


def workplace() -> tempfile.TemporaryDirectory[str]:
    """Temporary download folder inside the cache, removed afterwards in any case."""
    try:
        return tempfile.TemporaryDirectory(dir=make_folder(cache_folder()), prefix=".fetch-")
    except OutputError as error:
        message = f"{error}; or set LEERY_CACHE_DIR"
        raise OutputError(message) from error
