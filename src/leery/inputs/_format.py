"""How stored inputs become what the model takes."""

import io
import re
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from leery.errors import InputError, brief

__all__ = ["Channels", "Format", "UnreadableError"]

Channels = Literal["first", "last", "none"]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

_KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""Others are not tried: for PostScript Pillow would start a program."""

_PNG_DEPTH, _TIFF_DEPTH = 24, 258
"""Where the bits per channel stand: the offset of a byte in a PNG file, a tag of TIFF."""

_MOST_PIXELS = 2**25
"""Larger pictures are refused: a small file can claim a huge picture."""


class UnreadableError(Exception):
    """One input cannot be read; the text says why."""


@dataclass(frozen=True)
class Format:
    """How stored inputs become what the model takes.

    Bytes (uint8) become float32 in [0, 1]; other numbers stay as they are, floats as
    float32, whole numbers (token ids) as int64.

    Args:
        shape: of one input, such as (1, 28, 28); others are refused. None takes any, one after
            the other.
        resize: whether pictures of another size are resized to the shape (bilinear).
        channels: where arrays have their channels: "first", "last", or "none", for grey images
            without such a dimension. Pictures need no telling.
        images_key: the name of the images in npz files and parquet.
        labels_key: the name of the labels there; None when labels are of no interest.
        classes: how many classes a folder of folders must have; None takes any number.
        dtype: what the model takes; whole numbers are refused where it takes floats, and the other
            way round. None leaves the types as above.
        exif: whether pictures are turned as their EXIF orientation says.

    Raises:
        InputError: when a setting is outside its range.
    """

    shape: tuple[int, ...] | None = None
    resize: bool = False
    channels: Channels = "first"
    images_key: str = "images"
    labels_key: str | None = "labels"
    classes: int | None = None
    dtype: torch.dtype | None = None
    exif: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that no format can have."""
        if self.channels not in get_args(Channels):
            message = (
                f'expected channels "first", "last" or "none", got {self.channels!r}; name one'
            )
            raise InputError(message)
        if self.resize and (self.shape is None or len(self.shape) != 3):  # noqa: PLR2004 - C, H, W
            message = (
                f"expected a shape (channels, height, width) to resize to, got {self.shape}; give "
                "one or leave out resize"
            )
            raise InputError(message)

    def picture(self, content: bytes) -> Tensor:
        """A compressed picture, decoded: float32 ``(C, H, W)`` in [0, 1].

        Grey and colour follow the shape where there is one, else the picture.

        Raises:
            UnreadableError: when it cannot be decoded or has another shape.
        """
        try:
            with warnings.catch_warnings():
                # Notes on damaged metadata, and on sizes that are checked below.
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(content), formats=_KINDS) as image:
                    _check_depth(image, content)
                    pixels = self._pixels(image)
        except UnreadableError:
            raise
        except UnidentifiedImageError as error:
            message = "no picture of a known kind"
            raise UnreadableError(message) from error
        # Pillow's decoders raise whatever they stumble over.
        except Exception as error:
            message = f"a picture that cannot be decoded ({brief(error)})"
            raise UnreadableError(message) from error
        planes = pixels[:, :, None] if pixels.ndim == 2 else pixels  # noqa: PLR2004 - grey
        return self._checked(torch.from_numpy(planes.transpose(2, 0, 1) / np.float32(255)))

    def row(self, values: np.ndarray) -> Tensor:
        """One row of an array, as the model takes it.

        Raises:
            UnreadableError: when its type is none of numbers, its values are not finite, or it
                has another shape.
        """
        if self.channels == "none":
            values = values[None]
        elif self.channels == "last":
            values = np.moveaxis(values, -1, 0) if values.ndim else values
        if values.dtype == np.uint8:
            values = values / np.float32(255)
        elif values.dtype.kind == "f":
            values = values.astype(np.float32)
            if not np.isfinite(values).all():
                message = "NaN or infinity"
                raise UnreadableError(message)
        elif values.dtype.kind in "iu":
            if values.dtype == np.uint64 and values.max(initial=0) > np.iinfo(np.int64).max:
                message = "whole numbers of more than 63 bits"
                raise UnreadableError(message)
            values = values.astype(np.int64)
        else:
            message = f"values of type {values.dtype} instead of numbers"
            raise UnreadableError(message)
        return self._checked(torch.from_numpy(np.ascontiguousarray(values)))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 ``(H, W)`` or ``(H, W, C)``; sizes are checked before pixels are decoded."""
        if self.exif and image.height * image.width <= _MOST_PIXELS:
            image = ImageOps.exif_transpose(image)
        mode, size = self._mode(image), self._size(image)
        opaque = _opaque(image, mode)
        if opaque.size != size:
            opaque = opaque.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(opaque)

    def _mode(self, image: Image.Image) -> str:
        """Pillow's name for the channels that are asked for."""
        if image.mode.partition(";")[0] in ("I", "F"):
            message = "pixels of more than 8 bits per channel"
            raise UnreadableError(message)
        if self.shape is None:
            return "L" if image.mode in ("1", "L", "LA") else "RGB"
        if len(self.shape) != 3 or self.shape[0] not in _MODES:  # noqa: PLR2004 - C, H, W
            message = f"a picture, where inputs of shape {self.shape} are expected"
            raise UnreadableError(message)
        return _MODES[self.shape[0]]

    def _size(self, image: Image.Image) -> tuple[int, int]:
        """Width and height that are asked for."""
        height, width = image.height, image.width
        if height * width > _MOST_PIXELS:
            message = f"{height} x {width} pixels, more than {_MOST_PIXELS}"
            raise UnreadableError(message)
        if self.shape is not None:
            _, high, wide = self.shape
            if not self.resize and (height, width) != (high, wide):
                message = f"{height} x {width} pixels instead of {high} x {wide}"
                raise UnreadableError(message)
            height, width = high, wide
        return width, height

    def _checked(self, values: Tensor) -> Tensor:
        if self.shape is not None and tuple(values.shape) != self.shape:
            message = f"shape {tuple(values.shape)} instead of {self.shape}"
            raise UnreadableError(message)
        if self.dtype is None:
            return values
        if values.is_floating_point() != self.dtype.is_floating_point:
            message = f"values of {values.dtype}, where the fit had {self.dtype}"
            raise UnreadableError(message)
        return values.to(self.dtype)


def _check_depth(image: Image.Image, content: bytes) -> None:
    """Refuse what Pillow would cut without a word: more than 8 bits per channel, further pages."""
    depth = 8
    if image.format == "PNG":
        depth = content[_PNG_DEPTH]
    elif image.format == "TIFF":
        depth = max(image.tag_v2.get(_TIFF_DEPTH, (8,)))  # type: ignore[attr-defined]
    elif image.format == "PPM":
        depth = _largest_of_ppm(content).bit_length()
    if depth > 8:  # noqa: PLR2004 - bits of a byte
        message = f"pixels of more than 8 bits per channel ({depth})"
        raise UnreadableError(message)
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        message = f"{pages} pages or frames; save each as a picture of its own"
        raise UnreadableError(message)


def _largest_of_ppm(content: bytes) -> int:
    """The largest value that a netpbm file says its pixels have; 1 for bits."""
    words = re.sub(rb"#[^\n]*", b" ", content[:4096]).split(maxsplit=4)
    known = words[0] in (b"P2", b"P3", b"P5", b"P6") and len(words) > 3 and words[3].isdigit()  # noqa: PLR2004
    return int(words[3]) if known else 1


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """The picture in that mode, refused when pixels show through whose colour is not known."""
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            message = "transparent pixels, whose colour is not known"
            raise UnreadableError(message)
    return image.convert(mode)
