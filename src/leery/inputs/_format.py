"""Conversion of stored inputs to model inputs."""

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
"""Supported image formats; others are not tried, since Pillow runs a program for PostScript."""

_PNG_DEPTH, _TIFF_DEPTH = 24, 258
"""Location of the bits per channel: byte offset in a PNG file, tag number in a TIFF file."""

_MAX_PIXELS = 2**25
"""Maximum number of pixels of an image; a small file can decode to a huge image."""

_DECODING = 16
"""Bytes per pixel that a decoder may need."""


class UnreadableError(Exception):
    """One input cannot be read; the message says why."""


@dataclass(frozen=True)
class Format:
    """Format of stored inputs, and their conversion to model inputs.

    Unsigned bytes (uint8) are scaled to float32 in [0, 1]; other floating-point inputs become
    float32 and other integers (token ids) int64, without scaling.

    Args:
        shape: required shape of one input, such as (1, 28, 28); None accepts any shape.
        resize: True to resize images of another size to ``shape`` (bilinear).
        channels: channel dimension of arrays: "first", "last", or "none" for greyscale images
            without one. It does not apply to image files.
        images_key: name of the images in npz and Parquet files.
        labels_key: name of the labels in npz and Parquet files; None to ignore all labels, also
            those that folders give.
        classes: required number of class subfolders of a folder; None accepts any number.
        dtype: input dtype of the model; integers are rejected for a floating-point dtype and vice
            versa. None keeps the dtypes stated above.
        exif: True to apply the EXIF orientation of image files.

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
        """Raise if a setting is outside its range."""
        if self.channels not in get_args(Channels):
            message = (
                f'expected channels "first", "last" or "none", got {self.channels!r}; choose one'
            )
            raise InputError(message)
        if self.resize and (self.shape is None or len(self.shape) != 3):  # noqa: PLR2004 - C, H, W
            message = (
                f"expected a shape (channels, height, width) to resize to, got {self.shape}; give "
                "one or leave out resize"
            )
            raise InputError(message)

    def picture(self, content: bytes) -> Tensor:
        """Decode a compressed image to float32 ``(C, H, W)`` in [0, 1].

        The number of channels is that of ``shape`` or, without one, that of the image.

        Raises:
            UnreadableError: when it cannot be decoded or has another shape.
        """
        try:
            with warnings.catch_warnings():
                # Warnings about damaged metadata, and about sizes that are checked below.
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(content), formats=_KINDS) as image:
                    _check_depth(image, content)
                    pixels = self._pixels(image)
        except (UnreadableError, MemoryError):
            # Pixels are bounded, so that it is not the file that asks for too much memory.
            raise
        except UnidentifiedImageError as error:
            message = "not an image of a supported format"
            raise UnreadableError(message) from error
        # Pillow's decoders can raise any exception.
        except Exception as error:
            # Decoders of JPEG and WebP say that a file is damaged if they get too little memory.
            bytearray(_DECODING * _MAX_PIXELS)
            message = f"an image that cannot be decoded ({brief(error)})"
            raise UnreadableError(message) from error
        planes = pixels[:, :, None] if pixels.ndim == 2 else pixels  # noqa: PLR2004 - grey
        return self._checked(torch.from_numpy(planes.transpose(2, 0, 1) / np.float32(255)))

    def row(self, values: np.ndarray) -> Tensor:
        """Convert one row of an array to a model input.

        Raises:
            UnreadableError: when it is not numeric, not finite or of another shape.
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
                message = "integers of more than 63 bits"
                raise UnreadableError(message)
            values = values.astype(np.int64)
        else:
            message = f"elements of type {values.dtype} instead of numbers"
            raise UnreadableError(message)
        return self._checked(torch.from_numpy(np.ascontiguousarray(values)))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 ``(H, W)`` or ``(H, W, C)``; sizes are checked before pixels are decoded."""
        if self.exif and image.height * image.width <= _MAX_PIXELS:
            image = ImageOps.exif_transpose(image)
        mode, size = self._mode(image), self._size(image)
        opaque = _opaque(image, mode)
        if opaque.size != size:
            opaque = opaque.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(opaque)

    def _mode(self, image: Image.Image) -> str:
        """Pillow mode of the requested channels."""
        if image.mode.partition(";")[0] in ("I", "F"):
            message = "pixels of more than 8 bits per channel"
            raise UnreadableError(message)
        if self.shape is None:
            return "L" if image.mode in ("1", "L", "LA") else "RGB"
        if len(self.shape) != 3 or self.shape[0] not in _MODES:  # noqa: PLR2004 - C, H, W
            message = f"an image, where inputs of shape {self.shape} are expected"
            raise UnreadableError(message)
        return _MODES[self.shape[0]]

    def _size(self, image: Image.Image) -> tuple[int, int]:
        """Requested width and height."""
        height, width = image.height, image.width
        if height * width > _MAX_PIXELS:
            message = f"{height} x {width} pixels, more than {_MAX_PIXELS}"
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
            message = f"elements of {values.dtype}, where the fit had {self.dtype}"
            raise UnreadableError(message)
        return values.to(self.dtype)


def _check_depth(image: Image.Image, content: bytes) -> None:
    """Raise on what Pillow silently truncates: more than 8 bits per channel, further pages."""
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
        message = f"{pages} pages or frames; save each as a separate image"
        raise UnreadableError(message)


def _largest_of_ppm(content: bytes) -> int:
    """Maximum pixel value that a netpbm file states; 1 for bitmaps."""
    words = re.sub(rb"#[^\n]*", b" ", content[:4096]).split(maxsplit=4)
    known = words[0] in (b"P2", b"P3", b"P5", b"P6") and len(words) > 3 and words[3].isdigit()  # noqa: PLR2004
    return int(words[3]) if known else 1


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to a mode; raise if transparent pixels leave the colour undefined."""
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            message = "transparent pixels, whose colour is undefined"
            raise UnreadableError(message)
    return image.convert(mode)
