"""No input is lost or cut without a word: links, odd names, pages, depth, orientation, parquet."""

import contextlib
import errno
import io
import resource
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leery.errors import InputError, LeeryWarning, MachineError
from leery.inputs import Cuts, Format, Item, batches, count, load, read
from leery.inputs._read import Sources

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def items(*paths: Path, form: Format | None = None) -> list[Item]:
    found = list(read(list(paths), form or Format()))
    assert len(found) == count(list(paths), form or Format())
    return found


def png() -> bytes:
    content = io.BytesIO()
    PICTURE.save(content, "PNG")
    return content.getvalue()


def deep_png(kind: int, channels: int) -> bytes:
    """A PNG of 16 bits per channel; Pillow writes none with colours."""
    rows = np.arange(6 * 5 * channels).reshape(6, 5, channels).astype(">u2") * 16
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, kind, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))]
    chunks += [(b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_content_decides_what_is_a_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.dat", "c", "d.jfif", "e.PPM"):
        kind = {"d.jfif": "JPEG", "e.PPM": "PPM"}.get(name, "PNG")
        with (tmp_path / name).open("wb") as stream:
            PICTURE.save(stream, kind)
    (tmp_path / "f.txt").write_text("no picture")
    (tmp_path / "g.png").write_text("no picture")
    found = items(tmp_path)
    assert [item.name.rpartition("/")[2] for item in found] == sorted(
        path.name for path in tmp_path.iterdir()
    )
    reasons = {item.name.rpartition("/")[2]: item.error for item in found if item.error}
    assert reasons == dict.fromkeys(("f.txt", "g.png"), "not an image of a supported format")
    assert [item.name[-5:] for item in found if item.stranger] == ["f.txt"]


def test_files_that_are_no_pictures_are_passed_over_by_a_fit_with_a_warning(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_bytes(png())
    (tmp_path / "cat" / "notes.txt").write_text("a cat")
    (tmp_path / "README.md").write_text("cats and dogs")
    with pytest.warns(
        LeeryWarning, match=f"2 files that are not images were skipped, such as {tmp_path}"
    ):
        images, labels = load([tmp_path], Format())
    assert len(images) == 2
    assert labels is not None
    assert labels.tolist() == [0, 1]
    with pytest.warns(LeeryWarning, match="2 files that are not images were"):
        assert sum(len(part) for part, _ in batches([tmp_path], Format())) == 2
    (tmp_path / "dog" / "b.png").write_text("no picture")
    warnings.simplefilter("ignore", LeeryWarning)
    with pytest.raises(
        InputError, match="got .*b.png: not an image of a supported format; remove it"
    ):
        load([tmp_path], Format())


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "in" / "own").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    (tmp_path / "in" / "own" / "a.png").write_bytes(png())
    (tmp_path / "else" / "b.png").write_bytes(png())
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "else")
    (tmp_path / "in" / "own" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "else" / "round").symlink_to(tmp_path / "else")
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "else" / "b.png")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = {
        item.name.removeprefix(f"{tmp_path}/in/"): item.error for item in items(tmp_path / "in")
    }
    assert found == {
        "c.png": "",
        "gone.png": "a broken link",
        "linked/b.png": "",
        "own/a.png": "",
    }


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", "a.parquet"])
def test_what_the_machine_cannot_do_now_is_no_fault_of_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".png":
        path.write_bytes(png())
    elif path.suffix == ".npy":
        np.save(path, np.zeros((2, 3)))
    elif path.suffix == ".npz":
        np.savez(path, images=np.zeros((2, 3)))
    else:
        pq.write_table(pa.table({"images": [png()]}), path)
    sources = Sources([path], Format(labels_key=None))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(MachineError, match=rf"to read .*{name}, got Too many open files; mend"):
            list(sources.items())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not any(item.error for item in sources.items())


@pytest.mark.parametrize(
    ("kind", "settings"), [("PNG", {}), ("JPEG", {"progressive": True}), ("WEBP", {"lossless": 1})]
)
def test_too_little_memory_for_a_picture_is_no_fault_of_the_file(
    kind: str, settings: dict[str, Any]
) -> None:
    content = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(content, kind, **settings)
    picture = content.getvalue()
    form = Format(shape=(3, 8, 8), resize=True)
    form.picture(picture)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    for spare in (2**20, 2**24, 2**26):
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, before[1]))
        try:
            with contextlib.suppress(MemoryError):
                # Memory that was used before may suffice, but the file is never at fault.
                form.picture(picture)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("opened", range(1, 6))
def test_what_the_machine_cannot_do_later_is_no_fault_of_the_file(
    opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3)), labels=np.zeros(2, int))
    before, calls = zipfile.ZipFile.__init__, iter(range(1, 100))

    def failing(*given: Any, **settings: Any) -> None:
        if next(calls) == opened:
            raise OSError(errno.EMFILE, "Too many open files")
        before(*given, **settings)

    monkeypatch.setattr(zipfile.ZipFile, "__init__", failing)
    with pytest.raises(MachineError, match=r"to read .*a.npz, got Too many open files; mend"):
        load([tmp_path / "a.npz"], Format())


def test_a_header_of_brackets_in_brackets_is_a_fault_of_the_file(tmp_path: Path) -> None:
    header = b"-" * 9000 + b"1\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match="expected an npy or npz file at .*a.npy, got one that"):
        load([tmp_path / "a.npy"], Format())


def test_a_picture_that_vanishes_is_said(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(png())
    sources = Sources([tmp_path], Format())
    (tmp_path / "b.png").unlink()
    with pytest.raises(InputError, match=r"expected .*b.png to be there until the end, got no"):
        list(sources.items())


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_further_pages_are_a_reason_and_not_lost(kind: str, tmp_path: Path) -> None:
    others = [Image.fromarray(np.roll(PIXELS, step)) for step in (7, 31)]
    path = tmp_path / f"pages.{kind.lower()}"
    PICTURE.save(path, kind, save_all=True, append_images=others)
    (found,) = items(path)
    assert found.image is None
    assert found.error == "3 pages or frames; save each as a separate image"


@pytest.mark.parametrize(
    ("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "RGB", "LA", "RGBA"]
)
def test_sixteen_bits_are_not_cut_to_eight(kind: int, channels: int, tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(deep_png(kind, channels))
    for form in (Format(), Format(shape=(1, 6, 5)), Format(shape=(3, 6, 5))):
        (found,) = items(tmp_path / "deep.png", form=form)
        assert found.error == "pixels of more than 8 bits per channel (16)"


def test_nor_are_they_in_other_kinds_of_files(tmp_path: Path) -> None:
    Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5) * 2000).save(tmp_path / "a.tiff")
    (tmp_path / "b.ppm").write_bytes(b"P6\n# deep\n5 6\n65535\n" + bytes(180))
    (tmp_path / "c.ppm").write_bytes(b"P6 5 6 255\n" + bytes(90))
    (tmp_path / "e.ppm").write_bytes(b"P6\n5 # wide\n6\n# deep\n65535\n" + bytes(180))
    # A TIFF of three channels of 16 bits, as little as it takes.
    tags = [(256, 5), (257, 6), (262, 2), (273, 8 + 2 + 12 * 7 + 4 + 6), (277, 3), (279, 180)]
    depths = 8 + 2 + 12 * 7 + 4
    entries = sorted([*((t, 3, 1, v) for t, v in tags), (258, 3, 3, depths)])
    body = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    (tmp_path / "d.tiff").write_bytes(body + struct.pack("<HHH", 16, 16, 16) + bytes(180))
    reasons = {item.name[-6:]: item.error for item in items(tmp_path)}
    assert (
        reasons["/b.ppm"]
        == reasons["/e.ppm"]
        == reasons["d.tiff"]
        == "pixels of more than 8 bits per channel (16)"
    )
    assert "more than 8 bits" in reasons["a.tiff"]
    assert reasons["/c.ppm"] == ""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied_where_it_is_asked_for(
    orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    (plain,), (turned,) = (
        items(tmp_path / "turned.png", form=Format(exif=asked)) for asked in (False, True)
    )
    assert plain.image is not None
    assert turned.image is not None
    assert np.array_equal(plain.image.numpy(), PIXELS.transpose(2, 0, 1) / np.float32(255))
    steps = {
        1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2), 6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(PIXELS),
    }  # fmt: skip
    expected = steps[orientation].transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(turned.image.numpy(), expected)


COLUMNS = {
    "binary": pa.binary(),
    "large binary": pa.large_binary(),
    "a view": pa.binary_view(),
    "of fixed size": pa.binary(len(png())),
    "a dictionary": pa.dictionary(pa.int32(), pa.binary()),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_parquet_holds_bytes_in_many_ways(name: str, tmp_path: Path) -> None:
    column = pa.array([png()] * 3, pa.binary()).cast(COLUMNS[name])
    labels = pa.array([1, 0, 1]).dictionary_encode()
    pq.write_table(pa.table({"images": column, "labels": labels}), tmp_path / "some.parquet")
    found = items(tmp_path / "some.parquet")
    assert [item.label for item in found] == [1, 0, 1]
    assert all(item.image is not None for item in found)


def test_a_folder_of_parquet_parts_is_one_table(tmp_path: Path) -> None:
    for part in range(3):
        table = pa.table({"images": [png()] * 4, "labels": [part] * 4})
        pq.write_table(table, tmp_path / f"part-{part}.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "_metadata.parquet").write_text("not a part")
    found = items(tmp_path)
    assert [item.label for item in found] == [0] * 4 + [1] * 4 + [2] * 4
    later = [item.name for item in read([tmp_path], Format(), start=5)]
    assert later == [item.name for item in found[5:]]
    assert [path.name for path in Sources([tmp_path], Format()).files] == [
        f"part-{n}.parquet" for n in range(3)
    ]


def test_the_output_in_a_folder_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "out.csv").write_text("older scores")
    (tmp_path / "out.csv.parts").mkdir()
    (tmp_path / "out.csv.parts" / "run.json").write_text("{}")
    own = {(tmp_path / "out.csv").resolve(), (tmp_path / "out.csv.parts").resolve()}
    assert [item.name[-5:] for item in read([tmp_path], Format(), without=own)] == ["a.png"]
    assert count([tmp_path], Format(), without=own) == 1
    assert count([tmp_path], Format()) == 3


def test_the_output_is_no_input_behind_a_link_either(tmp_path: Path) -> None:
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "real" / "sub" / "a.png").write_bytes(png())
    (tmp_path / "real" / "sub" / "out.csv").write_text("older scores")
    (tmp_path / "real" / "latest.csv").symlink_to(tmp_path / "real" / "sub" / "out.csv")
    (tmp_path / "real" / "twin").symlink_to(tmp_path / "real" / "sub")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    own = {tmp_path.resolve() / "real" / "sub" / "out.csv"}
    found = Sources([tmp_path / "linked"], Format(), without=own).files
    assert list(found) == [tmp_path / "linked" / name / "a.png" for name in ("sub", "twin")]


def test_files_of_a_folder_are_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b.png", "a/z.png", "a/b/c.png", "a-1.png", "a.png", "C.png", "a/b.png", "ä.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    assert list(Sources([tmp_path], Format()).files) == sorted(tmp_path / name for name in names)


def test_folders_are_no_labels_where_labels_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "class-0").mkdir()
    (tmp_path / "class-0" / "a.png").write_bytes(png())
    assert [item.label for item in read([tmp_path], Format())] == [0]
    assert [item.label for item in read([tmp_path], Format(labels_key=None))] == [None]


def test_pictures_beside_tables_keep_their_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    pq.write_table(pa.table({"images": [png()]}), tmp_path / "b.parquet")
    (tmp_path / "notes").write_text("P2P and BMW are no pictures")
    found = {item.name[-9:]: item.error for item in items(tmp_path)}
    assert found[f"{tmp_path}/a.png"[-9:]] == ""
    assert found["b.parquet"] == "a file of many inputs; pass it separately"
    assert found[f"{tmp_path}/notes"[-9:]] == "not an image of a supported format"
    with pytest.warns(LeeryWarning, match="2 files that are not images were"):
        assert len(load([tmp_path], Format())[0]) == 1


def test_links_that_lead_nowhere_in_other_ways_are_rows_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "through-a-file").symlink_to(tmp_path / "a.png" / "x")
    (tmp_path / "chain-0").symlink_to(tmp_path / "a.png")
    for number in range(45):
        (tmp_path / f"chain-{number + 1}").symlink_to(tmp_path / f"chain-{number}")
    found = {Path(item.name).name: item.error for item in items(tmp_path)}
    assert found["a.png"] == found["chain-1"] == ""
    assert found["through-a-file"] == found["chain-45"] == "a broken link"
    cuts = Cuts([tmp_path], Format(), (1, 2, 2))
    cuts.check_unchanged()
    assert sum(cuts.sizes) == 48


def test_parts_in_folders_of_folders_are_one_table(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(pa.table({"images": [png()] * 2}), tmp_path / f"day={day}" / "0.PARQUET")
    assert len(items(tmp_path)) == 4


def test_a_link_to_itself_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert [bool(item.error) for item in items(tmp_path)] == [False, True]
