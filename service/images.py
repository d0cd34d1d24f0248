"""From the bytes of a request to the pixels of a network's input.

The header is checked before anything is decoded: format, and width times height. What the decoder
then trips over is the caller's error, never the server's.
"""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from tokenfold.bundle.preprocess import DepthError, Pixels, Preprocess, pixels
from tokenfold.service.errors import ImageError, ImageFormat, ImageTooLarge

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF"

# `decode` has its own limit, and raises instead of warning. Pillow's is one for the whole process.
Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes, preprocess: Preprocess, *, max_pixels: int) -> Pixels:
    """An encoded image as the network's input; see `tokenfold.bundle.preprocess.pixels` for how.

    Args:
        data: a whole file of one of `FORMATS`.
        max_pixels: width times height; above it nothing is decoded.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ImageFormat: not an image, or of another format.
        ImageTooLarge: more than `max_pixels`.
        ImageError: empty, truncated or corrupt.
    """
    return decoded(opened(data, max_pixels=max_pixels), preprocess)


def decoded(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """An opened image as the network's input.

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
    """An encoded image whose header is good; nothing is decoded yet.

    Raises:
        ImageFormat, ImageTooLarge: see `decode`.
        ImageError: empty, or its header is corrupt.
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
        raise ImageFormat(f"The file is no image that is read here ({NAMES}).") from error
    except Exception as error:
        raise ImageError("The image's header is corrupt.") from error
