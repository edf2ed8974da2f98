"""CIFAR-10 from a made archive, its binary files and parquet files of pictures."""

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from leery.data import DATASETS, data_sums, load
from leery.data._archive import archive_sums, load_archive
from leery.data._registry import ArchiveDataset
from leery.errors import CorruptDataError, DataError

CIFAR = DATASETS["cifar-10"]
assert isinstance(CIFAR, ArchiveDataset)

RECORDS = 5
generator = np.random.default_rng(0)
PIXELS = {
    name: generator.integers(0, 256, (RECORDS, 3, 32, 32), dtype=np.uint8)
    for name in (*CIFAR.train, *CIFAR.test)
}
LABELS = {name: np.arange(RECORDS, dtype=np.uint8) + number for number, name in enumerate(PIXELS)}
BINARY = {
    name: b"".join(
        bytes([label]) + rows.tobytes() for label, rows in zip(LABELS[name], pixels, strict=True)
    )
    for name, pixels in PIXELS.items()
}


def archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


ARCHIVE = archive(BINARY)


def made(content: bytes = ARCHIVE, address: str = "http://127.0.0.1:9/") -> ArchiveDataset:
    """CIFAR-10 with five images per file."""
    assert isinstance(CIFAR, ArchiveDataset)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return replace(CIFAR, md5=md5, address=address, records=RECORDS)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEERY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LEERY_DATA_DIR", raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "cifar-10-binary.tar.gz").write_bytes(ARCHIVE)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    own = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=own.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{own.server_address[1]}/"
    own.shutdown()
    own.server_close()
    thread.join()


def check(dataset: ArchiveDataset, root: Path | None = None) -> None:
    """Both splits have every pixel and label in order."""
    for split, names in (("train", dataset.train), ("test", dataset.test)):
        images, labels = load_archive(dataset, split, root)  # type: ignore[arg-type]
        pixels = np.concatenate([PIXELS[name] for name in names])
        assert images.dtype == torch.float32
        assert np.array_equal((images * 255).round().numpy(), pixels)
        assert labels.dtype == torch.int64
        assert labels.tolist() == np.concatenate([LABELS[name] for name in names]).tolist()


def test_the_archive_is_downloaded_once_and_read_from_the_cache(
    server: str, tmp_path: Path
) -> None:
    check(made(address=server))
    (tmp_path / "www" / "cifar-10-binary.tar.gz").unlink()
    check(made(address=server))
    found = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert found == ["cifar-10-binary.tar.gz"]


def test_a_folder_may_hold_the_archive_or_its_files(tmp_path: Path) -> None:
    packed, plain, nested = (tmp_path / name for name in ("packed", "plain", "nested"))
    for folder in (packed, plain, nested / "cifar-10" / "cifar-10-batches-bin"):
        folder.mkdir(parents=True)
    (packed / "cifar-10-binary.tar.gz").write_bytes(ARCHIVE)
    for name, content in BINARY.items():
        (plain / name).write_bytes(content)
        (nested / "cifar-10" / "cifar-10-batches-bin" / name).write_bytes(content)
    for folder in (packed, plain, nested):
        check(made(), folder)
    assert archive_sums(made(), packed) == {
        "cifar-10-binary.tar.gz": hashlib.sha256(ARCHIVE).hexdigest()
    }
    assert archive_sums(made(), plain) == {
        name: hashlib.sha256(content).hexdigest() for name, content in BINARY.items()
    }


def test_the_sums_are_of_the_files_that_are_read(tmp_path: Path) -> None:
    for name, content in BINARY.items():
        (tmp_path / name).write_bytes(content)
    labels = LABELS["test_batch.bin"].astype(np.int64)
    table = pa.table({"images": pictures("test_batch.bin"), "labels": labels})
    pq.write_table(table, tmp_path / "test.parquet")
    assert sorted(archive_sums(made(), tmp_path)) == [*sorted(made().train), "test.parquet"]


def test_an_archive_that_is_not_the_published_one_is_refused(server: str, tmp_path: Path) -> None:
    other = made(b"other", server)
    with pytest.raises(DataError, match=r"got no download from .* with MD5 .*pickled"):
        load_archive(other, "test", None)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "cifar-10-binary.tar.gz").write_bytes(ARCHIVE[:-1])
    with pytest.raises(CorruptDataError, match="expected cifar-10-binary.tar.gz with MD5"):
        load_archive(made(), "test", folder)


def test_a_folder_of_pickled_files_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"\x80\x04.")
    with pytest.raises(
        DataError,
        match=r"neither cifar.* nor test_batch.bin nor .test.parquet in .*mine",
    ):
        load_archive(made(), "test", folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BINARY["test_batch.bin"][:-1], "expected 5 records of 3073 bytes, got 15364 bytes"),
        (
            b"\x0a" + BINARY["test_batch.bin"][1:],
            r"expected labels of cifar-10 in 0\.\.9, got 6 to",
        ),
    ],
)
def test_a_damaged_binary_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    for name, whole in {**BINARY, "test_batch.bin": content}.items():
        (tmp_path / name).write_bytes(whole)
    with pytest.raises(CorruptDataError, match=message):
        load_archive(made(), "test", tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(CorruptDataError, match=r"data_batch_3.bin.*replace them"):
        load_archive(made(), "train", tmp_path)


def pictures(name: str) -> list[bytes]:
    found = []
    for pixels in PIXELS[name]:
        stream = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "png")
        found.append(stream.getvalue())
    return found


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_of_pictures_is_read(tmp_path: Path, nested: bool) -> None:
    for split, name in (("train", "data_batch_1.bin"), ("test", "test_batch.bin")):
        shown: list[object] = [*pictures(name)]
        if nested:
            shown = [{"bytes": picture, "path": None} for picture in shown]
        column, labels = ("img", "label") if nested else ("images", "labels")
        table = pa.table({column: shown, labels: LABELS[name].astype(np.int64)})
        pq.write_table(table, tmp_path / f"mine-{split}.parquet")
        images, truth = load("cifar-10", split, tmp_path)  # type: ignore[arg-type]
        assert np.array_equal((images * 255).round().numpy(), PIXELS[name])
        assert truth.tolist() == LABELS[name].tolist()
    assert sorted(data_sums("cifar-10", tmp_path)) == ["mine-test.parquet", "mine-train.parquet"]


def test_a_wrong_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    labels = LABELS["test_batch.bin"].astype(np.int64)
    pq.write_table(pa.table({"pixels": pictures("test_batch.bin"), "labels": labels}), path)
    with pytest.raises(CorruptDataError, match="a column named images or image or img in"):
        load("cifar-10", "test", tmp_path)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "png")
    for picture, message in ((small.getvalue(), r"of shape \(3, 8, 8\)"), (b"no", "got .*cannot")):
        pq.write_table(pa.table({"images": [picture], "labels": [1]}), path)
        with pytest.raises(CorruptDataError, match=message):
            load("cifar-10", "test", tmp_path)
    path.write_bytes(b"no parquet")
    with pytest.raises(CorruptDataError, match="expected pictures of cifar-10 in"):
        load("cifar-10", "test", tmp_path)
