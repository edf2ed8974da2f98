"""Users' images: every kind of source gives the same images, and bad ones are told apart."""

import io
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from leery.errors import InputError
from leery.inputs import Format, batches, count, load, read

GENERATOR = np.random.default_rng(0)
GREY = GENERATOR.integers(0, 256, (7, 6, 5), dtype=np.uint8)
COLOUR = GENERATOR.integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0])


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def folder(path: Path, pixels: np.ndarray) -> Path:
    for place, image in enumerate(pixels):
        own = path / "pictures" / f"class-{LABELS[place]}"
        own.mkdir(parents=True, exist_ok=True)
        (own / f"{place}.png").write_bytes(png(image))
    return path / "pictures"


def parquet(path: Path, pixels: np.ndarray) -> Path:
    table = pa.table({"images": [png(image) for image in pixels], "labels": LABELS})
    pq.write_table(table, path / "some.parquet", row_group_size=3)
    return path / "some.parquet"


def structured(path: Path, pixels: np.ndarray) -> Path:
    rows = [{"bytes": png(image), "path": None} for image in pixels]
    pq.write_table(pa.table({"images": rows, "labels": LABELS}), path / "other.parquet")
    return path / "other.parquet"


def npz(path: Path, pixels: np.ndarray) -> Path:
    planes = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    np.savez_compressed(path / "some.npz", images=np.ascontiguousarray(planes), labels=LABELS)
    return path / "some.npz"


def npy(path: Path, pixels: np.ndarray) -> Path:
    planes = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    np.save(path / "some.npy", np.ascontiguousarray(planes))
    return path / "some.npy"


SOURCES: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "folder": folder,
    "parquet": parquet,
    "structures": structured,
    "npz": npz,
    "npy": npy,
}


def expected(pixels: np.ndarray) -> Tensor:
    planes = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(planes.astype(np.float32) / 255)


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_gives_the_same_images(
    name: str, pixels: np.ndarray, tmp_path: Path
) -> None:
    path = SOURCES[name](tmp_path, pixels)
    assert count([path], Format()) == 7
    images, labels = load([path], Format())
    order = np.argsort(LABELS, kind="stable") if name == "folder" else np.arange(7)
    assert torch.equal(images, expected(pixels)[order])
    if name == "npy":
        assert labels is None
    else:
        assert labels is not None
        assert labels.tolist() == LABELS[order].tolist()


@pytest.mark.parametrize("start", [0, 2, 3, 6, 7])
@pytest.mark.parametrize("name", SOURCES)
def test_reading_can_start_anywhere(name: str, start: int, tmp_path: Path) -> None:
    path = SOURCES[name](tmp_path, GREY)
    whole = list(read([path, path], Format()))
    assert len(whole) == 14
    for begin in (start, start + 7):
        rest = list(read([path, path], Format(), start=begin))
        assert [item.name for item in rest] == [item.name for item in whole[begin:]]
        for one, other in zip(rest, whole[begin:], strict=True):
            assert one.image is not None
            assert other.image is not None
            assert torch.equal(one.image, other.image)


def test_an_empty_source_does_not_move_the_start(tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"images": pa.array([], pa.binary())}), empty)
    whole = npz(tmp_path, GREY)
    names = [item.name for item in read([empty, whole], Format(), start=3)]
    assert names == [f"{whole}#{row}" for row in range(3, 7)]


def test_no_program_is_started_for_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **_options: started.append(args))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(script)
    (item,) = read([tmp_path / "a.png"], Format())
    assert item.error == "not an image of a supported format"
    assert not started


def test_numbers_beyond_their_type_are_told(tmp_path: Path) -> None:
    table = pa.table({"images": [png(GREY[0])] * 2, "labels": pa.array([1, 2**63], pa.uint64())})
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = read([tmp_path / "a.parquet"], Format())
    assert (first.label, second.error) == (1, f"class {2**63}, outside 0..{2**31}")
    np.save(tmp_path / "b.npy", np.array([[1], [2**63]], np.uint64))
    first, second = read([tmp_path / "b.npy"], Format())
    assert first.error == ""
    assert second.error == "integers of more than 63 bits"
    np.savez(tmp_path / "c.npz", images=GREY, labels=np.full(7, 2**63, np.uint64))
    with pytest.raises(InputError, match=f"classes up to {2**31} in .*, got {2**63}; number"):
        load([tmp_path / "c.npz"], Format(channels="none"))


def test_claims_of_more_than_is_there_are_not_believed(tmp_path: Path) -> None:
    header = b"\x93NUMPY\x02\x00" + (3 * 10**8).to_bytes(4, "little") + b" " * 100
    (tmp_path / "long.npy").write_bytes(header)
    with pytest.raises(InputError, match="an npy header of at most 65536 bytes"):
        load([tmp_path / "long.npy"], Format())
    with (tmp_path / "sparse.png").open("wb") as stream:
        stream.truncate(2**31)
    (item,) = read([tmp_path / "sparse.png"], Format())
    assert item.error == f"more than {2**28} bytes"
    wide = png(np.zeros((1, 2**13), np.uint8)).replace(
        (2**13).to_bytes(4, "big") + (1).to_bytes(4, "big"),
        (2**13).to_bytes(4, "big") + (2**13).to_bytes(4, "big"),
    )
    wide = wide[:29] + zlib.crc32(wide[12:29]).to_bytes(4, "big") + wide[33:]
    (tmp_path / "huge.png").write_bytes(wide)
    (item,) = read([tmp_path / "huge.png"], Format())
    assert item.error == f"{2**13} x {2**13} pixels, more than {2**25}"


def test_folders_with_other_classes_are_not_read_as_one(tmp_path: Path) -> None:
    for name, classes in {"one": "abc", "two": "abd"}.items():
        for label in classes:
            (tmp_path / name / label).mkdir(parents=True)
            (tmp_path / name / label / "x.png").write_bytes(png(GREY[0]))
    both = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(
        InputError, match="the same classes in .*, got a, b, c and a, b, d; classes"
    ):
        load(both, Format())
    assert len(load(both, Format(labels_key=None))[0]) == 6


@pytest.mark.parametrize("name", ["folder", "parquet", "npz"])
def test_batches_hold_the_whole_in_order(name: str, tmp_path: Path) -> None:
    path = SOURCES[name](tmp_path, GREY)
    found = list(batches([path], Format(), size=3))
    assert [len(labels) for _, labels in found] == [3, 3, 1]
    images, labels = load([path], Format())
    assert torch.equal(torch.cat([part for part, _ in found]), images)
    assert labels is not None
    assert torch.equal(torch.cat([part for _, part in found]), labels)


def test_what_cannot_be_read_is_told_and_the_rest_is_given(tmp_path: Path) -> None:
    path = folder(tmp_path, GREY)
    (path / "class-0" / "0a.png").write_bytes(b"no picture")
    (path / "class-0" / "0b.png").write_bytes(png(GREY[0])[:60])
    (path / "class-0" / "0c.png").write_bytes(png(np.zeros((9, 9), np.uint8)))
    items = list(read([path], Format(shape=(1, 6, 5))))
    assert [item.error for item in items[1:4]] == [
        "not an image of a supported format",
        items[2].error,
        "9 x 9 pixels instead of 6 x 5",
    ]
    assert items[2].error.startswith("an image that cannot be decoded (")
    assert [item.image is None for item in items] == [False, *[True] * 3, *[False] * 6]
    with pytest.raises(
        InputError, match="readable inputs, got .*0a.png: not an image of a supported"
    ):
        load([path], Format())


def test_pictures_follow_the_shape_they_are_asked_for(tmp_path: Path) -> None:
    path = folder(tmp_path, COLOUR)
    grey = next(read([path], Format(shape=(1, 6, 5)))).image
    assert grey is not None
    whole = np.asarray(Image.fromarray(COLOUR[0]).convert("L"))
    assert torch.equal(grey, expected(whole[None])[0])
    small = next(read([path], Format(shape=(3, 3, 2), resize=True))).image
    assert small is not None
    assert small.shape == (3, 3, 2)
    (error,) = {item.error for item in read([path], Format(shape=(12,)))}
    assert error == "an image, where inputs of shape (12,) are expected"


@pytest.mark.parametrize(
    ("array", "form", "text"),
    [
        (GREY, Format(channels="none"), ""),
        (COLOUR, Format(channels="last"), ""),
        (GREY.astype(float) / 255, Format(channels="none"), ""),
        (np.full((2, 3), np.nan), Format(), "NaN or infinity"),
        (np.array([["a"], ["b"]]), Format(), "elements of type <U1 instead of numbers"),
        (GREY, Format(shape=(1, 6, 5)), "shape (6, 5) instead of (1, 6, 5)"),
    ],
)
def test_arrays_become_what_the_model_takes(
    array: np.ndarray, form: Format, text: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", array)
    items = list(read([tmp_path / "a.npy"], form))
    assert {item.error for item in items} == {text}
    if not text:
        found = torch.stack([item.image for item in items if item.image is not None])
        assert torch.allclose(found, expected(COLOUR if array.ndim == 4 else GREY), atol=1e-6)


def test_token_ids_stay_whole_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(12, dtype=np.int32).reshape(3, 4))
    images, _ = load([tmp_path / "ids.npy"], Format())
    assert images.dtype == torch.int64
    assert images.tolist() == np.arange(12).reshape(3, 4).tolist()


def bomb(path: Path) -> None:
    """An npz of a few bytes that claims a terabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        facts: dict[str, Any] = {"shape": (1, 2**40), "fortran_order": False, "descr": "|u1"}
        np.lib.format.write_array_header_1_0(header, facts)
        archive.writestr("images.npy", header.getvalue() + bytes(1000))


def with_objects(path: Path) -> None:
    np.savez(path, images=np.array([{"a": 1}, None], dtype=object))


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no file": ("none.npz", lambda _: None, "file or folder at .*none.npz, got none"),
    "another kind": (
        "a.txt",
        lambda p: p.write_text("hi"),
        r"folder, an image, .npy, .npz or .parquet",
    ),
    "no zip": ("a.npz", lambda p: p.write_text("hi"), "npy or npz file .* cannot be read"),
    "no array": ("a.npy", lambda p: p.write_text("hi"), "npy or npz file .* cannot be read"),
    "no parquet": ("a.parquet", lambda p: p.write_text("hi"), "parquet file .* cannot be read"),
    "other names": ("a.npz", lambda p: np.savez(p, x=GREY), "'images' in .*, got x; rename"),
    "objects": (
        "a.npz",
        with_objects,
        r"numeric array .N, \.\.\.. in C order in .*, got Python objects; save it",
    ),
    "columns first": (
        "a.npy",
        lambda p: np.save(p, np.asfortranarray(GREY)),
        r"numeric array .N, \.\.\.. in C order in .*, got Fortran order; save it",
    ),
    "a number": (
        "a.npy",
        lambda p: np.save(p, np.array(3)),
        r"numeric array .N, \.\.\.. in C order in .*, got shape \(\)",
    ),
    "a bomb": ("a.npz", bomb, "rows of 1099511627776 bytes"),
    "labels that miss": (
        "a.npz",
        lambda p: np.savez(p, images=GREY, labels=LABELS[:3]),
        r"expected 7 integers as labels in .*, got shape \(3,\) of int64",
    ),
    "another column": (
        "a.parquet",
        lambda p: pq.write_table(pa.table({"x": [b""]}), p),
        "column 'images' in .*, got x; rename yours or pass its name",
    ),
    "numbers for pictures": (
        "a.parquet",
        lambda p: pq.write_table(pa.table({"images": [1.0]}), p),
        "expected image bytes in column 'images' .*, got double",
    ),
    "words for labels": (
        "a.parquet",
        lambda p: pq.write_table(pa.table({"images": [b""], "labels": ["cat"]}), p),
        "expected integers in column 'labels' .*, got string; number the classes",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_source_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    file, make, text = BROKEN[name]
    make(tmp_path / file)
    with pytest.raises(InputError, match=text) as caught:
        list(read([tmp_path / file], Format()))
    assert "\n" not in str(caught.value)


def test_a_cut_off_array_is_refused_where_it_ends(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-10])
    items = read([tmp_path / "a.npy"], Format())
    assert [next(items).error for _ in range(6)] == [""] * 6
    with pytest.raises(
        InputError, match="expected 30 more bytes in .*, got 20: the file is truncated"
    ):
        next(items)


def test_an_empty_folder_and_images_of_several_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected images in .*, got none; pass a folder"):
        count([tmp_path], Format())
    (tmp_path / "a.png").write_bytes(png(GREY[0]))
    (tmp_path / "b.png").write_bytes(png(GREY[0, :3]))
    text = r"inputs of one shape, got \(1, 6, 5\) and \(1, 3, 5\) .*b.png.; resize them"
    with pytest.raises(InputError, match=text):
        load([tmp_path], Format())
    with pytest.raises(InputError, match="a label for each input, got none for .*a.png; use a"):
        list(batches([tmp_path], Format()))


def test_impossible_formats_are_refused() -> None:
    with pytest.raises(InputError, match='"first", "last" or "none", got \'middle\''):
        Format(channels="middle")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="channels, height, width. to resize to, got None"):
        Format(resize=True)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5)), "pixels of more than 8 b"),
        (Image.new("F", (5, 6), 0.5), "pixels of more than 8 bits"),
        (Image.new("RGBA", (5, 6), (9, 9, 9, 0)), "transparent pixels, whose colour is undefined"),
        (Image.new("RGBA", (5, 6), (9, 9, 9, 255)), ""),
        (Image.new("P", (5, 6)), ""),
        (Image.new("1", (5, 6), 1), ""),
    ],
)
def test_pictures_whose_pixels_mean_something_else_are_refused(
    image: Image.Image, text: str, tmp_path: Path
) -> None:
    image.save(tmp_path / "a.tiff")
    (item,) = read([tmp_path / "a.tiff"], Format(shape=(3, 6, 5)))
    assert item.error.startswith(text)
    assert bool(item.error) == bool(text)
    if text == "" and image.mode == "RGBA":
        assert item.image is not None
        assert torch.equal(item.image, torch.full((3, 6, 5), 9 / 255))


def test_hidden_files_are_passed_over_and_odd_names_can_be_written(tmp_path: Path) -> None:
    path = folder(tmp_path, GREY)
    (path / ".cache").mkdir()
    (path / ".cache" / "a.png").write_bytes(png(GREY[0]))
    odd = os.fsencode(path / "class-0") + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(png(GREY[0]))
    items = list(read([path], Format()))
    assert len(items) == 8
    assert {item.label for item in items} == {0, 1, 2}
    assert [item.name for item in items if "\\xff" in item.name]
    for item in items:
        item.name.encode()


def test_classes_are_numbered_alike_in_every_folder_of_a_classifier(tmp_path: Path) -> None:
    path = folder(tmp_path, GREY)
    for file in (path / "class-0").iterdir():
        file.unlink()
    text = r"for each of 4 classes in .*, got 3 \(class-0, class-1, class-2\); classes are numb"
    with pytest.raises(InputError, match=text):
        load([path], Format(classes=4))
    _, labels = load([path], Format(classes=3))
    assert labels is not None
    assert labels.tolist() == [1, 1, 2, 2]
    assert len(load([path], Format(classes=4, labels_key=None))[0]) == 4
