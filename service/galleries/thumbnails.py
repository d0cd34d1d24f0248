"""What a gallery keeps of an image's pixels: enough to be looked at, and to be ranked again."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from tokenfold.bundle.preprocess import Preprocess, lies
from tokenfold.inference import images

LONGEST = 384  # pixels of the longer side: what networks that see images with texts look at
_QUALITY = 90


class Thumbnail(NamedTuple):
    """A small image.

    Attributes:
        jpeg: upright, without the original's EXIF: whoever may see it need not learn where it was
            taken.
        width, height: of the original, upright, in pixels.
    """

    jpeg: bytes
    width: int
    height: int


def thumbnail(data: bytes, *, max_pixels: int) -> Thumbnail:
    """An encoded image in small; a small one keeps its size.

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
    if lies(image):
        width, height = height, width
    file = io.BytesIO()
    # 4:4:4: thin coloured lines, of which a network has to see the colour, survive.
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return Thumbnail(file.getvalue(), width, height)
