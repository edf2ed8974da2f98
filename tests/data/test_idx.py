"""The IDX parser takes what it should and refuses everything else."""

import struct

import numpy as np
import pytest

from leery.data import parse_idx
from leery.errors import CorruptDataError

IMAGES = struct.pack(">HBBIII", 0, 8, 3, 2, 2, 3) + bytes(range(12))


def test_a_well_formed_file_gives_its_pixels() -> None:
    parsed = parse_idx(IMAGES, "images", ndim=3)
    assert parsed.shape == (2, 2, 3)
    assert np.array_equal(parsed.ravel(), np.arange(12))


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"", "got 0 bytes"),
        (IMAGES[:10], "got 10 bytes"),
        (IMAGES[:-1], r"got 27 bytes \(truncated\)"),
        (IMAGES + b"x", r"got 29 bytes \(oversized\)"),
        (b"\x1f\x8b\x08\x00" + IMAGES[4:], "got 0x1f8b0800"),
        (struct.pack(">HBBI", 0, 8, 1, 5) + bytes(12), "expected 3 dimension"),
        (struct.pack(">HBB", 0, 13, 3) + IMAGES[4:], "magic"),
    ],
)
def test_a_malformed_file_is_refused_by_name(data: bytes, got: str) -> None:
    with pytest.raises(CorruptDataError, match=rf"^images: .*{got}.*replace the file$"):
        parse_idx(data, "images", ndim=3)


def test_labels_are_not_taken_for_images() -> None:
    labels = struct.pack(">HBBI", 0, 8, 1, 20) + bytes(20)
    with pytest.raises(CorruptDataError, match="expected 3 dimension"):
        parse_idx(labels, "train-images", ndim=3)
    assert parse_idx(labels, "train-labels", ndim=1).shape == (20,)
