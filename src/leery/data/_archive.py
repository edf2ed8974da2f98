"""Datasets in one archive of binary files, such as CIFAR-10, or in parquet files of pictures.

The archive is cached whole, so that its published MD5 can be checked each time. Pickled files,
which could run code, are never read.
"""

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from leery._files import make_folder
from leery.data._cache import cache_folder, local_folder, workplace
from leery.data._registry import ArchiveDataset, Split
from leery.data._sources import SourceError, download
from leery.errors import CorruptDataError, DataError, brief

_IMAGES, _LABELS = ("images", "image", "img"), ("labels", "label")
"""Accepted names of the columns of a parquet file."""


def load_archive(
    dataset: ArchiveDataset, split: Split, root: str | os.PathLike[str] | None
) -> tuple[Tensor, Tensor]:
    """Images, float32 ``(N, channels, height, width)`` in [0, 1], and labels, int64 ``(N,)``.

    Raises:
        CorruptDataError: when a file is not what it should be.
        DataError: when there is no file.
    """
    path = _found(dataset, root)
    parquet = _parquet_of(path, split) if path.is_dir() else None
    if parquet is not None:
        pixels, labels = _parse_parquet(dataset, parquet)
    else:
        raw = _binary_files(dataset, dataset.files_of(split), path)
        parts = [_parse_binary(dataset, name, content) for name, content in raw.items()]
        pixels, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    if labels.min() < 0 or labels.max() >= len(dataset.classes):
        message = (
            f"expected labels of {dataset.name} in 0..{len(dataset.classes) - 1}, got "
            f"{labels.min()} to {labels.max()} in {path}; replace the file"
        )
        raise CorruptDataError(message)
    images = torch.from_numpy(pixels).to(torch.float32).div_(255)
    return images, torch.from_numpy(labels.astype(np.int64))


def archive_sums(dataset: ArchiveDataset, root: str | os.PathLike[str] | None) -> dict[str, str]:
    """The SHA-256 of the archive or, in the user's folder, of the files that are read."""
    path = _found(dataset, root)
    splits: tuple[Split, ...] = ("train", "test")
    files = [path] if path.is_file() else []
    for split in splits if path.is_dir() else ():
        parquet = _parquet_of(path, split)
        files += [parquet] if parquet else [path / name for name in dataset.files_of(split)]
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()
    }


def _found(dataset: ArchiveDataset, root: str | os.PathLike[str] | None) -> Path:
    """The archive or a folder with binary or parquet files; without either, a downloaded archive.

    Raises:
        CorruptDataError: when the archive is not the published one.
        DataError: when the download fails.
    """
    cached = cache_folder() / dataset.name / dataset.archive
    given = local_folder(dataset.name, root)
    if given is not None:
        for path in (given / dataset.archive, given / dataset.folder, given):
            if path.is_file():
                return _checked(dataset, path)
            binary = any((path / name).is_file() for name in (*dataset.train, *dataset.test))
            if binary or _parquet_of(path, "train") or _parquet_of(path, "test"):
                return path
    if cached.is_file():
        return _checked(dataset, cached)
    return _downloaded(dataset, cached, given)


def _downloaded(dataset: ArchiveDataset, target: Path, given: Path | None) -> Path:
    with workplace() as place:
        try:
            download(dataset.address, [dataset.archive], Path(place), dataset.name)
            path = _checked(dataset, Path(place) / dataset.archive)
        except (SourceError, CorruptDataError) as error:
            wanted = f"neither {dataset.archive} nor {dataset.test[0]} nor *test.parquet"
            searched = "" if given is None else f"{wanted} in {given}, and "
            message = (
                f"expected the files of {dataset.name}, got {searched}no download from "
                f"{dataset.address} ({error}); copy {dataset.archive} (MD5 {dataset.md5}) into "
                f"{target.parent}, or into a folder given by --data-dir or LEERY_DATA_DIR; pickled "
                "files are not read"
            )
            raise DataError(message) from error
        make_folder(target.parent)
        path.replace(target)
    return target


def _checked(dataset: ArchiveDataset, path: Path) -> Path:
    """The path, if the archive there is the published one.

    Raises:
        CorruptDataError: when it is not.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
        found = digest.hexdigest()
    if found != dataset.md5:
        message = (
            f"expected {dataset.archive} with MD5 {dataset.md5}, got {found} in {path}; delete "
            "that file or replace it"
        )
        raise CorruptDataError(message)
    return path


def _binary_files(dataset: ArchiveDataset, names: Sequence[str], path: Path) -> Mapping[str, bytes]:
    """The content of binary files, from the archive or from a folder.

    Raises:
        CorruptDataError: when one is missing or cannot be read.
    """
    try:
        if path.is_dir():
            return {name: (path / name).read_bytes() for name in names}
        with tarfile.open(path) as tar:
            return {name: _member(tar, f"{dataset.folder}/{name}") for name in names}
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        message = (
            f"expected the files {', '.join(names)} of {dataset.name} in {path}, got "
            f"{brief(error)}; replace them"
        )
        raise CorruptDataError(message) from error


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    stream = tar.extractfile(name)
    if stream is None:
        message = f"no file {name}"
        raise KeyError(message)
    return stream.read()


def _parse_binary(
    dataset: ArchiveDataset, name: str, content: bytes
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 ``(N, channels, height, width)``, and labels of a binary file."""
    size = 1 + int(np.prod(dataset.shape))
    if len(content) != dataset.records * size:
        message = (
            f"{name}: expected {dataset.records} records of {size} bytes, got {len(content)} "
            "bytes; replace the file"
        )
        raise CorruptDataError(message)
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
    return rows[:, 1:].reshape(-1, *dataset.shape), rows[:, 0].astype(np.int64)


def _parquet_of(folder: Path, split: Split) -> Path | None:
    """The parquet file of a split, if the folder has one."""
    return next(iter(sorted(folder.glob(f"*{split}.parquet"))), None)


def _parse_parquet(dataset: ArchiveDataset, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of a parquet file of picture bytes."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CorruptDataError(_unreadable(dataset, path, error)) from error
    pictures, labels = _column(table, _IMAGES, path), _column(table, _LABELS, path)
    if pa.types.is_struct(pictures.type):
        pictures = pictures.combine_chunks().field(0)
    try:
        pixels = np.stack([_pixels(picture.as_py(), dataset) for picture in pictures])
        return pixels, labels.to_numpy().astype(np.int64)
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise CorruptDataError(_unreadable(dataset, path, error)) from error


def _unreadable(dataset: ArchiveDataset, path: Path, error: Exception) -> str:
    return f"expected pictures of {dataset.name} in {path}, got {brief(error)}; replace it"


def _column(table: pa.Table, names: Sequence[str], path: Path) -> pa.ChunkedArray:
    found = [name for name in names if name in table.column_names]
    if not found:
        message = (
            f"expected a column named {' or '.join(names)} in {path}, got "
            f"{', '.join(table.column_names)}; rename it"
        )
        raise CorruptDataError(message)
    return table.column(found[0])


def _pixels(picture: bytes, dataset: ArchiveDataset) -> np.ndarray:
    """Pixels, uint8 ``(channels, height, width)``, of a picture file."""
    with Image.open(io.BytesIO(picture)) as opened:
        pixels = np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    if pixels.shape != dataset.shape:
        message = f"a picture of shape {pixels.shape}, not {dataset.shape}"
        raise ValueError(message)
    return pixels
