"""Thumbnails: the pixels that a gallery keeps of an image, for display and for reranking."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from tokenfold.bundle.preprocess import Preprocess, is_sideways
from tokenfold.inference import images

LONGEST = 384  # pixels of the longer side, the input size of networks that rerank
_QUALITY = 90


class Thumbnail(NamedTuple):
    """A small version of an image.

    Attributes:
        jpeg: upright JPEG file without the original's EXIF data, which may reveal where the image
            was taken.
        width, height: size of the upright original, in pixels.
    """

    jpeg: bytes
    width: int
    height: int


def thumbnail(data: bytes, *, max_pixels: int) -> Thumbnail:
    """Scale an encoded image down; a small image keeps its size.

    Raises:
        ImageFormat, ImageTooLarge, ImageError: see `images.decode`.
    """
    image = images.opened(data, max_pixels=max_pixels)
    width, height = image.size
    longest = min(LONGEST, max(width, height))
    fit = Preprocess(
        size=(longest, longest),
        resize="bounded",
        shorter_side=longest,
        longest=longest,
        multiple=1,
        interpolation="bicubic",
    )
    pixels = images.decoded(image, fit)
    if is_sideways(image):
        width, height = height, width
    file = io.BytesIO()
    # 4:4:4 subsampling keeps the colour of thin lines, which a network must recognise.
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return Thumbnail(file.getvalue(), width, height)
