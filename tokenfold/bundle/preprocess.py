"""Pre-processing of images: from an opened image to a network's input."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Triple = tuple[float, float, float]
Pixels = npt.NDArray[np.uint8]

_RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset((5, 6, 7, 8))  # orientations whose width is the upright image's height

# A JPEG is decoded at half, a quarter or an eighth of its size if each side is then still at least
# this many times the network's. That is several times faster, and the antialiased resize hides the
# difference (tests/inference/test_images.py bounds it).
_DRAFT_FACTOR = 2

# Only the middle of an image is scaled if it is more than this many times longer than wide: scaling
# an image of 1 by 1,000,000 pixels would take terabytes.
_MAX_ASPECT = 16


class Preprocess(BaseModel):
    """Parameters of resizing, cropping and normalising.

    Attributes:
        size: height and width of the network's input, pixels; for `bounded` the size that the
            position embedding was made for.
        resize: `stretch` resizes to `size`; `shorter` scales the shorter side to `shorter_side` and
            crops the centre; `bounded` scales the shorter side to `shorter_side`, or less if the
            longer side would exceed `longest`, and rounds both down to a multiple of `multiple`.
            Images keep nearly their aspect ratio then, and have many sizes (ViLT).
        shorter_side: pixels, for `shorter` and `bounded`.
        longest, multiple: pixels, for `bounded`.
        mean, std: mean and standard deviation per channel, of values in 0..1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int]
    resize: Literal["stretch", "shorter", "bounded"] = "stretch"
    shorter_side: int | None = Field(default=None, ge=1)
    longest: int | None = Field(default=None, ge=1)
    multiple: int | None = Field(default=None, ge=1)
    interpolation: Interpolation = "bilinear"
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        bounds = (self.shorter_side, self.longest, self.multiple)
        if self.resize == "bounded" and None in bounds:
            raise ValueError("resize 'bounded' needs shorter_side, longest and multiple")
        if self.resize != "bounded" and (self.longest or self.multiple):
            raise ValueError("longest and multiple are for resize 'bounded' only")
        return self

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width, pixels, to which an image of a size is resized."""
        if self.resize != "bounded" or not (self.shorter_side and self.longest and self.multiple):
            return self.size
        shorter, multiple = self.shorter_side, self.multiple
        if height < width:
            sides: tuple[float, float] = (shorter, width * (shorter / height))
        else:
            sides = (height * (shorter / width), shorter)
        scale = min(self.longest / max(sides), 1)
        # Rounding down would leave no pixels of a very long image.
        rows, columns = (
            max(int(side * scale + 0.5) // multiple * multiple, multiple) for side in sides
        )
        return rows, columns


class DepthError(ValueError):
    """An image whose values have an unknown range."""


def pixels(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """Convert an opened image to the network's input.

    Uses the first frame, rotated by its EXIF orientation, with transparency over white and 16 bits
    per channel scaled to 8.

    Args:
        image: an image that is not loaded yet, so that a large JPEG can be decoded smaller.

    Returns:
        (height, width, 3) uint8, RGB, of the size that `preprocess.size_of` returns.

    Raises:
        DepthError: the image has 32 bits per channel.
        Exception: Pillow's decoders raise nearly anything on corrupt data: OSError, SyntaxError,
            ValueError, struct.error, zlib.error, IndexError...
    """
    # Only JPEG decoders use the hint.
    image.draft("RGB", (_DRAFT_FACTOR * max(preprocess.size_of(image.height, image.width)),) * 2)
    image.load()
    turn = _turn(image)
    image = _eight_bits(image)
    return _fit(image if turn is None else image.transpose(turn), preprocess)


def is_sideways(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps an image's width and height.

    The orientation of a PNG is known only after decoding.
    """
    return _orientation(image) in _SIDEWAYS


def _turn(image: Image.Image) -> Image.Transpose | None:
    return _UPRIGHT.get(_orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # An image with a broken EXIF block is still readable.
        return 1
    return orientation if isinstance(orientation, int) else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the image in mode L, RGB or RGBA."""
    if image.mode.startswith("I;16"):
        # convert() would clip at 255. Pillow also takes the upper byte for colour images.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DepthError(
            "Images with 32 bits per channel are not supported, because their range is unknown."
        )
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _fit(image: Image.Image, preprocess: Preprocess) -> Pixels:
    if preprocess.resize == "shorter":
        scaled = _centre(image, preprocess)
    else:
        height, width = preprocess.size_of(image.height, image.width)
        scaled = _resize(image, (width, height), preprocess.interpolation)
    if scaled.mode == "RGBA":
        scaled = Image.alpha_composite(Image.new("RGBA", scaled.size, "white"), scaled)
    return np.asarray(scaled.convert("RGB"))


def _centre(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Scale the shorter side and crop the centre."""
    height, width = preprocess.size
    shorter = preprocess.shorter_side or min(preprocess.size)
    w, h = image.size
    longest = _MAX_ASPECT * min(w, h)
    if max(w, h) > longest:
        left, top = max(0, w - longest) // 2, max(0, h - longest) // 2
        image = image.crop((left, top, left + min(w, longest), top + min(h, longest)))
        w, h = image.size
    # The longer side is rounded down, as torchvision and transformers do.
    size = (shorter, shorter * h // w) if w <= h else (shorter * w // h, shorter)
    scaled = _resize(image, size, preprocess.interpolation)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    # A crop that is larger than the image is black beyond its edge.
    return scaled.crop((left, top, left + width, top + height))


def _resize(image: Image.Image, size: tuple[int, int], interpolation: Interpolation) -> Image.Image:
    method = _RESAMPLING[interpolation]
    # Images more than six times too large are averaged in boxes first; others are not changed.
    gap = None if method == Image.Resampling.NEAREST else 3.0
    return image.resize(size, method, reducing_gap=gap)
