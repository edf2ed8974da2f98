"""Reading of inputs from any supported source."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from stat import S_ISLNK

import numpy as np
import torch
from torch import Tensor

from leery._files import raise_reading_fault
from leery.errors import InputError, listed, warn
from leery.inputs._arrays import array_length, read_array
from leery.inputs._format import Format, UnreadableError
from leery.inputs._item import Item, gone, printable
from leery.inputs._parquet import parquet_length, read_parquet

__all__ = [
    "Sources",
    "batches",
    "count",
    "item_of",
    "labelled_batch",
    "load",
    "load_labelled",
    "read",
]

_PICTURES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)
_SIGNATURES = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"RIFF",
    *(f"P{kind}{space}".encode() for kind in range(1, 7) for space in "\n\t "),
)
"""First bytes of image files."""

_PICTURE_BYTES = 2**28

_ARRAYS = frozenset({".npy", ".npz"})


class Sources:
    """Folders and files of inputs, listed once.

    Args:
        paths: their paths, as for :func:`read`.
        form: format of the sources and conversion to model inputs.
        without: files and folders to exclude when a folder is read, such as the output.

    Raises:
        InputError: when a path is missing, disappears or is of an unsupported type, or labelled
            folders have different classes.
    """

    def __init__(
        self, paths: Sequence[Path], form: Format, *, without: Collection[Path] = ()
    ) -> None:
        _check_alike(paths, form)
        try:
            self._sources = [one for path in paths for one in _sources(path, form, without)]
        except FileNotFoundError as error:
            raise gone(error.filename) from error

    def __len__(self) -> int:
        """The number of inputs."""
        return sum(source.length for source in self._sources)

    @property
    def files(self) -> Iterator[Path]:
        """The files, in order."""
        for source in self._sources:
            yield from source.files

    def items(self, start: int = 0) -> Iterator[Item]:
        """Iterate over the inputs from ``start`` on, as :func:`read` does."""
        for source in self._sources:
            if start and start >= source.length:
                start -= source.length
                continue
            yield from source.items(start)
            start = 0


@dataclass(frozen=True)
class _Source:
    """A file, or all pictures of a folder.

    Attributes:
        files: the files.
        count: function that returns the number of inputs.
        items: function that yields the inputs from a number on.
    """

    files: Sequence[Path]
    count: Callable[[], int]
    items: Callable[[int], Iterator[Item]]

    @cached_property
    def length(self) -> int:
        """The number of inputs."""
        return self.count()


def count(paths: Sequence[Path], form: Format, *, without: Collection[Path] = ()) -> int:
    """Number of inputs that :func:`read` yields for the same arguments.

    Raises:
        InputError: when a path is missing or of an unsupported type.
    """
    return len(Sources(paths, form, without=without))


def read(
    paths: Sequence[Path], form: Format, *, start: int = 0, without: Collection[Path] = ()
) -> Iterator[Item]:
    """Iterate over the inputs of folders, image files, npy, npz and Parquet files.

    A folder yields one input for each file in it and its subfolders, sorted by path; links are
    followed and hidden files are skipped. Whether a file is an image is decided by its content. A
    folder that holds only Parquet files yields their rows. If all images lie in subfolders, the
    label of an image is the index of its top-level subfolder, in alphabetical order, unless labels
    are ignored. Nothing is unpickled. An input that cannot be read is yielded with the reason.

    Args:
        paths: paths of the sources.
        form: format of the sources and conversion to model inputs.
        start: number of inputs to skip.
        without: files and folders to exclude when a folder is read, such as the output.

    Raises:
        InputError: when a path is missing, of an unsupported type or entirely unreadable.
    """
    yield from Sources(paths, form, without=without).items(start)


def load(paths: Sequence[Path], form: Format) -> tuple[Tensor, Tensor | None]:
    """Load all inputs of the sources into memory.

    Returns:
        Images ``(N, ...)``; labels int64 ``(N,)``, or None if an input has no label.

    Raises:
        InputError: when an input cannot be read or differs in shape, or there is none.
    """
    images: list[Tensor] = []
    labels: list[int | None] = []
    for item in _without_strangers(read(paths, form)):
        image = _readable(item)
        if images and image.shape != images[0].shape:
            message = (
                f"expected inputs of one shape, got {tuple(images[0].shape)} and "
                f"{tuple(image.shape)} ({item.name}); resize them"
            )
            raise InputError(message)
        images.append(image)
        labels.append(item.label)
    if not images:
        message = f"expected at least one input in {', '.join(map(str, paths))}, got none; add some"
        raise InputError(message)
    known = [label for label in labels if label is not None]
    return torch.stack(images), torch.tensor(known) if len(known) == len(labels) else None


def load_labelled(paths: Sequence[Path], form: Format) -> tuple[Tensor, Tensor]:
    """Load all inputs and labels of the sources into memory.

    Returns:
        Images ``(N, ...)`` and labels int64 ``(N,)``.

    Raises:
        InputError: as :func:`load`, or when an input has no label.
    """
    images, labels = load(paths, form)
    if labels is None:
        message = (
            "expected a label for each image, got some without; use a "
            f"folder for each class, or an array or column {form.labels_key!r}"
        )
        raise InputError(message)
    return images, labels


def batches(
    paths: Sequence[Path], form: Format, size: int = 256
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over labelled sources in batches, with one batch in memory at a time.

    Yields:
        Images ``(n, ...)`` and labels int64 ``(n,)``.

    Raises:
        InputError: when an input cannot be read, has no label, or differs in shape.
    """
    items = _without_strangers(read(paths, form))
    while chunk := list(islice(items, size)):
        yield labelled_batch(chunk, form)


def labelled_batch(items: Sequence[Item], form: Format) -> tuple[Tensor, Tensor]:
    """The images ``(n, ...)`` and labels int64 ``(n,)`` of inputs.

    Raises:
        InputError: when an input cannot be read, has no label, or differs in shape.
    """
    images = [_readable(item) for item in items]
    for item in items:
        if item.label is None:
            message = (
                f"expected a label for each input, got none for {item.name}; use a folder for "
                f"each class, or an array or column {form.labels_key!r}"
            )
            raise InputError(message)
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        message = f"expected inputs of one shape, got {sorted(shapes)}; resize them"
        raise InputError(message)
    return torch.stack(images), torch.tensor([item.label for item in items])


def item_of(value: object, form: Format) -> Item:
    """One input that another library has read.

    Args:
        value: a compressed image as bytes, or an array or nested list of numbers.
        form: conversion to a model input.
    """
    try:
        if isinstance(value, bytes):
            return Item("", form.picture(value))
        return Item("", form.row(np.asarray(value)))
    except UnreadableError as error:
        return Item("", None, error=str(error))
    except ValueError:
        return Item("", None, error="no array of numbers")


def _readable(item: Item) -> Tensor:
    if item.image is None:
        message = f"expected readable inputs, got {item.name}: {item.error}; remove it"
        raise InputError(message)
    return item.image


def _without_strangers(items: Iterator[Item]) -> Iterator[Item]:
    """Skip files that are not images by name or content; warn about their number."""
    strangers: list[str] = []
    for item in items:
        if item.stranger:
            strangers.append(item.name)
        else:
            yield item
    if strangers:
        warn(f"{len(strangers)} files that are not images were skipped, such as {strangers[0]}")


def _sources(path: Path, form: Format, without: Collection[Path]) -> Iterator[_Source]:
    """The sources at a path: a file, the Parquet files of a folder, or its pictures."""
    if not path.is_dir():
        _check_kind(path)
        yield _file(path, form)
        return
    inside = _inside(path, without)
    if parts := _parts_among(inside):
        yield from (_file(part, form) for part in parts)
        return

    @cache
    def labels() -> dict[Path, int]:
        return _folder_labels(path, [file for file in inside if _is_picture(file)], form)

    def pictures(start: int) -> Iterator[Item]:
        known = {} if form.labels_key is None else labels()
        return (_picture(file, form, known.get(file)) for file in inside[start:])

    yield _Source(inside, lambda: len(inside), pictures)


def _file(path: Path, form: Format) -> _Source:
    """The inputs of one file."""
    kind = path.suffix.lower()
    if kind in _ARRAYS:
        return _Source([path], partial(array_length, path, form), partial(read_array, path, form))
    if kind == ".parquet":
        return _Source(
            [path], partial(parquet_length, path, form), partial(read_parquet, path, form)
        )
    return _Source([path], lambda: 1, lambda _start: iter([_picture(path, form, None)]))


def _check_kind(path: Path) -> None:
    if not path.is_file():
        message = f"expected a file or folder at {path}, got none; correct the path"
        raise InputError(message)
    if path.suffix.lower() not in _ARRAYS | {".parquet"} and not _is_picture(path):
        message = (
            f"expected a folder, an image, .npy, .npz or .parquet, got {path}; convert it to one "
            "of these"
        )
        raise InputError(message)


def _is_picture(path: Path) -> bool:
    """True if a file is an image by its name or its first bytes."""
    if path.suffix.lower() in _PICTURES:
        return True
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
    except OSError:
        return False
    if start.startswith(b"BM"):
        return int.from_bytes(start[2:6], "little") == path.stat().st_size
    return start.startswith(_SIGNATURES)


def _inside(folder: Path, without: Collection[Path]) -> list[Path]:
    """All files in a folder and its subfolders, sorted, except hidden ones.

    Links are followed, except to a folder that contains the link.
    """
    found: list[Path] = []
    waiting = [(folder, folder.resolve(), frozenset[Path]())]
    while waiting:
        here, real, above = waiting.pop()
        above |= {real}
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                # Resolving a path takes longer than all else, and only links need it.
                path = here / entry.name
                linked = entry.is_symlink()
                own = _resolved(path) if linked else real / entry.name
                if own in without:
                    continue
                # Of a link that leads nowhere, path.is_dir() is False; entry.is_dir() may raise.
                if own is None or not (path.is_dir() if linked else entry.is_dir()):
                    found.append(path)
                elif own not in above:
                    waiting.append((path, own, above))
    if not found:
        message = f"expected images in {folder}, got none; pass a folder with images"
        raise InputError(message)
    return sorted(found)


def _resolved(path: Path) -> Path | None:
    """The path with links resolved; None for a circular link."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return None


def _parts_among(inside: Sequence[Path]) -> list[Path]:
    """The Parquet files among those of a folder, if it holds nothing else; else none.

    Such a folder is a partitioned table. Files whose names begin with "_" are its metadata.
    """
    files = [path for path in inside if not path.name.startswith("_")]
    return files if all(path.suffix.lower() == ".parquet" for path in files) else []


def _folders(folder: Path) -> list[str]:
    """Sorted names of the subfolders; their indices are the class labels."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _check_alike(paths: Sequence[Path], form: Format) -> None:
    """Raise if the class subfolders of labelled folders differ.

    Raises:
        InputError: when they differ.
    """
    folders = [path for path in paths if path.is_dir()] if form.labels_key is not None else []
    for folder in folders[1:]:
        first, other = _folders(folders[0]), _folders(folder)
        if first != other:
            message = (
                f"expected the same classes in {folders[0]} and {folder}, got {listed(first)} and "
                f"{listed(other)}; classes are numbered by folder: add empty folders"
            )
            raise InputError(message)


def _folder_labels(folder: Path, files: Sequence[Path], form: Format) -> dict[Path, int]:
    """The class of each image if all images lie in subfolders; else empty.

    Empty subfolders count, so that a missing class does not change the other labels.

    Raises:
        InputError: when the number of subfolders is not the number of classes.
    """
    own = [file.relative_to(folder).parts for file in files]
    if any(len(parts) < 2 for parts in own):  # noqa: PLR2004 - a folder and a file
        return {}
    names = _folders(folder)
    if form.classes not in (None, len(names)):
        message = (
            f"expected a folder for each of {form.classes} classes in {folder}, got {len(names)} "
            f"({listed(names)}); classes are numbered by folder: add empty ones for those without "
            "images"
        )
        raise InputError(message)
    numbers = {name: number for number, name in enumerate(names)}
    return {file: numbers[parts[0]] for file, parts in zip(files, own, strict=True)}


def _picture(path: Path, form: Format, label: int | None) -> Item:
    name = printable(path)
    try:
        if not path.is_file():
            # lstat raises if the file has disappeared.
            what = "a broken link" if S_ISLNK(path.lstat().st_mode) else "not a regular file"
            return Item(name, None, label, what)
        if path.suffix.lower() in _ARRAYS | {".parquet"}:
            return Item(
                name, None, label, "a file of many inputs; pass it separately", stranger=True
            )
        if path.stat().st_size > _PICTURE_BYTES:
            return Item(name, None, label, f"more than {_PICTURE_BYTES} bytes")
        return Item(name, form.picture(path.read_bytes()), label)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise gone(path) from error
    except OSError as error:
        raise_reading_fault(path, error)
        return Item(name, None, label, error.strerror or str(error))
    except UnreadableError as error:
        return Item(name, None, label, str(error), stranger=not _is_picture(path))
