"""How a photo becomes a network's input. No torch: export and the service share it."""

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
_LYING = frozenset((5, 6, 7, 8))  # whose width is the upright image's height

# A JPEG is decoded at half, a quarter or an eighth of its size where that still leaves this many
# times the pixels that the network sees: several times faster, and the antialiased resize after it
# hides the difference (tests/service/test_images.py bounds it).
_GAP = 2

# Of a strip longer than this many times its width only the middle is scaled: one pixel by a million
# would become terabytes.
_STRIP = 16


class Preprocess(BaseModel):
    """Resize, crop and normalise.

    Attributes:
        size: height and width of the network's input, pixels; where `resize` is `bounded`, those
            that its position embedding is made for.
        resize: `stretch` goes straight to `size`; `shorter` scales the shorter side to
            `shorter_side` and crops the centre; `bounded` scales the shorter side to
            `shorter_side`, or as far as the longer one stays within `longest`, and then cuts both
            down to a multiple of `multiple`: images keep their shape, nearly, and come out in
            many sizes (ViLT).
        shorter_side: pixels, for `shorter` and `bounded`.
        longest, multiple: pixels, for `bounded`.
        mean, std: per channel, of values in 0..1.
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
            raise ValueError("bounded needs shorter_side, longest and multiple")
        if self.resize != "bounded" and (self.longest or self.multiple):
            raise ValueError("longest and multiple are for bounded alone")
        return self

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of these comes out in, pixels."""
        if self.resize != "bounded" or not (self.shorter_side and self.longest and self.multiple):
            return self.size
        shorter, multiple = self.shorter_side, self.multiple
        if height < width:
            sides: tuple[float, float] = (shorter, width * (shorter / height))
        else:
            sides = (height * (shorter / width), shorter)
        scale = min(self.longest / max(sides), 1)
        # A strip would come out with no pixels at all.
        rows, columns = (
            max(int(side * scale + 0.5) // multiple * multiple, multiple) for side in sides
        )
        return rows, columns


class DepthError(ValueError):
    """An image whose values have no known range."""


def pixels(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """An opened image as the network's input.

    The first frame, turned upright as its EXIF says, transparency laid over white, 16 bits a
    channel scaled to 8.

    Args:
        image: not yet loaded, for a large JPEG is decoded smaller.

    Returns:
        (height, width, 3) uint8, RGB; `preprocess.size_of` says which height and width.

    Raises:
        DepthError: 32 bits a channel.
        Exception: Pillow's decoders raise nearly anything on corrupt data: OSError, SyntaxError,
            ValueError, struct.error, zlib.error, IndexError...
    """
    # Nothing but JPEG reacts to it.
    image.draft("RGB", (_GAP * max(preprocess.size_of(image.height, image.width)),) * 2)
    image.load()
    turn = _turn(image)
    image = _eight_bits(image)
    return _fit(image if turn is None else image.transpose(turn), preprocess)


def lies(image: Image.Image) -> bool:
    """Whether an image's width is its height when it is turned upright, as its EXIF says.

    Of a PNG it is known without decoding only once it is decoded.
    """
    return _orientation(image) in _LYING


def _turn(image: Image.Image) -> Image.Transpose | None:
    return _UPRIGHT.get(_orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A broken EXIF block does not make the picture unreadable.
        return 1
    return found if isinstance(found, int) else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or RGBA."""
    if image.mode.startswith("I;16"):
        # convert() would clip at 255 instead of scaling. The upper byte, as Pillow does for colour.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DepthError("Images of 32 bits a channel are not read: their range is not known.")
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
    """Scale the shorter side, and cut out the centre."""
    height, width = preprocess.size
    shorter = preprocess.shorter_side or min(preprocess.size)
    w, h = image.size
    most = _STRIP * min(w, h)
    if max(w, h) > most:
        left, top = max(0, w - most) // 2, max(0, h - most) // 2
        image = image.crop((left, top, left + min(w, most), top + min(h, most)))
        w, h = image.size
    # The longer side is cut down to whole pixels, as torchvision and transformers do.
    size = (shorter, shorter * h // w) if w <= h else (shorter * w // h, shorter)
    scaled = _resize(image, size, preprocess.interpolation)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    # Beyond the image's edge (a crop larger than the shorter side) this is black.
    return scaled.crop((left, top, left + width, top + height))


def _resize(image: Image.Image, size: tuple[int, int], interpolation: Interpolation) -> Image.Image:
    method = _RESAMPLING[interpolation]
    # What is more than six times too large is averaged in boxes first; below, nothing changes.
    gap = None if method == Image.Resampling.NEAREST else 3.0
    return image.resize(size, method, reducing_gap=gap)
