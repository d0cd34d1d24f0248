"""Decoding: from an encoded image to the pixels of a network's input.

The format and the number of pixels are checked before anything is decoded. A failure of the decoder
is the error of the caller, never of the server.
"""

from __future__ import annotations

import binascii
import io
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tokenfold.bundle.preprocess import DepthError, Pixels, Preprocess, pixels
from tokenfold.inference.errors import ImageError, ImageFormat, ImageTooLarge

ImageLike = str | PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""A path, the bytes of an image file, a Pillow image, or an array (H, W, 3) uint8 in RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF"

# Pillow's limit is global to the process, and warns. `opened` applies a limit per call, and raises.
Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes | str, preprocess: Preprocess, *, max_pixels: int) -> Pixels:
    """Decode an image into the network's input; see `tokenfold.bundle.preprocess.pixels`.

    Args:
        data: a whole file of one of `FORMATS`, or base64 of one, perhaps as a data URL.
        preprocess: the network's pre-processing.
        max_pixels: largest width times height that is decoded.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ImageFormat: the file is not an image of a supported format.
        ImageTooLarge: the image has more than `max_pixels`.
        ImageError: the image is empty, truncated or corrupt, or the base64 is invalid.
    """
    raw = data if isinstance(data, bytes) else unbase64(data)
    return decoded(opened(raw, max_pixels=max_pixels), preprocess)


def unbase64(text: str) -> bytes:
    """Decode base64, perhaps as a data URL.

    Raises:
        ImageError: the text is no base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ImageError("The image is not valid base64.") from error


def decoded(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """Turn an opened image into the network's input.

    Raises:
        ImageTooLarge, ImageError: see `decode`.
    """
    try:
        return pixels(image, preprocess)
    except DepthError as error:
        raise ImageError(str(error)) from error
    except MemoryError as error:
        raise ImageTooLarge("There is not enough memory to decode the image.") from error
    except Exception as error:
        raise ImageError("The image is truncated or corrupt.") from error


def opened(data: bytes, *, max_pixels: int) -> Image.Image:
    """Open an encoded image and check its header, without decoding it.

    Raises:
        ImageFormat, ImageTooLarge: see `decode`.
        ImageError: the image is empty, or its header is corrupt.
    """
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"The image has {width} x {height} pixels; at most {max_pixels:,} are decoded."
        )
    return image


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("The image is empty: 0 bytes.")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageFormat(f"The file is no image of a supported format ({NAMES}).") from error
    except Exception as error:
        raise ImageError("The image's header is corrupt.") from error


def encoded(image: ImageLike) -> bytes:
    """Return the bytes of an image file; a Pillow image or an array becomes a PNG."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = image.convert("RGB")
    file = io.BytesIO()
    # Lossless, and with the orientation.
    image.save(file, "PNG", compress_level=1, exif=image.getexif())
    return file.getvalue()
