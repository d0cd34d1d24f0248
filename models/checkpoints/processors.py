"""Pre-processing of Hugging Face folders, from `preprocessor_config.json`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tokenfold.bundle.preprocess import Interpolation, Preprocess, Triple
from tokenfold.models.checkpoints.checkpoint import CheckpointError, parse_settings
from tokenfold.models.checkpoints.files import read_json

FILE = "preprocessor_config.json"
COMBINED = "processor_config.json"  # newer versions; it covers texts too

# Pillow's numbers of filters, which the configurations use.
RESAMPLING: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

HALF: Triple = (0.5, 0.5, 0.5)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

# Processors whose `size`, if it is a single number, means the shorter side, not a square.
BY_SHORTER_SIDE = ("CLIP", "Bit", "ConvNext")

Size = dict[str, int | None] | int | tuple[int, int] | None

log = logging.getLogger(__name__)


# Ratio of the longest to the shorter side in ViLT, taken from object detection on COCO.
_LONGEST_RATIO = 1333 / 800


class _Processor(BaseModel):
    """Fields that change the result, in the forms of all versions of `transformers`."""

    model_config = ConfigDict(extra="ignore")

    image_processor_type: str = ""
    feature_extractor_type: str = ""
    do_resize: bool = True
    size: Size = None
    resample: int = Field(default=2)
    do_center_crop: bool = False
    crop_size: Size = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Triple = HALF
    image_std: Triple = HALF


class _ViltProcessor(_Processor):
    """Fields of ViLT's processor that change the result."""

    size: Size = 384
    size_divisor: int = Field(default=32, ge=1)
    resample: int = Field(default=3)


def read(folder: Path, processor: str, image_size: tuple[int, int]) -> Preprocess:
    """Read a folder's pre-processing, or return the default one if the file is missing.

    A square resize before a centre crop (DeiT's `size` 256, `crop_size` 224) becomes a resize of
    the shorter side, which the networks were trained and evaluated with.

    Args:
        processor: key of the default pre-processing, see `default`.
        image_size: height and width in the network's configuration, pixels.

    Raises:
        CheckpointError: the file is invalid, or asks for steps that are not supported.
    """
    file = folder / FILE
    content = read_json(file) if file.exists() else None
    if content is None and (folder / COMBINED).exists():
        file = folder / COMBINED
        content = read_json(file).get("image_processor")
    if content is None:
        log.warning(
            "%s is missing: assuming the default pre-processing of %s", folder / FILE, processor
        )
        return default(processor, image_size)
    return _translate(parse_settings(_Processor, content, f"{file}: "), file)


def read_vilt(folder: Path, image_size: tuple[int, int], patch_size: int) -> Preprocess:
    """Read the pre-processing of a ViLT's folder, or return the default one if the file is missing.

    Args:
        image_size: height and width of the position embedding, pixels.
        patch_size: pixels; sides are rounded down to a multiple of it.

    Raises:
        CheckpointError: as `read`, or patches do not tile the sides.
    """
    file = folder / FILE
    if not file.exists():
        log.warning("%s is missing: assuming the default pre-processing of ViLT", file)
        return default_vilt(image_size, patch_size)
    content = read_json(file)
    processor = parse_settings(_ViltProcessor, content, f"{file}: ")
    kind = processor.image_processor_type or processor.feature_extractor_type
    if kind and not kind.startswith("Vilt"):
        return _translate(parse_settings(_Processor, content, f"{file}: "), file)
    _, _, shorter = _size(processor.size, False, f"{file}: size")
    if shorter is None:
        raise CheckpointError(f"{file}: size needs shortest_edge")
    if processor.size_divisor % patch_size:
        raise CheckpointError(
            f"{file}: sides are multiples of size_divisor {processor.size_divisor}, which patches "
            f"of {patch_size} do not tile"
        )
    common = _common(processor, file)
    return _bounded(image_size, shorter, processor.size_divisor, **common)


def default_vilt(image_size: tuple[int, int], patch_size: int) -> Preprocess:
    """Return the published pre-processing of ViLT, at the image size of the position embedding."""
    return _bounded(image_size, min(image_size), patch_size, interpolation="bicubic")


def _bounded(image_size: tuple[int, int], shorter: int, multiple: int, **common: Any) -> Preprocess:
    return Preprocess(
        size=image_size,
        resize="bounded",
        shorter_side=shorter,
        longest=int(_LONGEST_RATIO * shorter),
        multiple=multiple,
        **common,
    )


def default(processor: str, image_size: tuple[int, int]) -> Preprocess:
    """Return the pre-processing that published networks of a kind share, at an image size.

    Args:
        processor: `vit`, `deit`, `dinov2`, `clip` or `siglip`.
    """
    if processor in ("vit", "siglip"):
        interpolation: Interpolation = "bilinear" if processor == "vit" else "bicubic"
        return Preprocess(size=image_size, interpolation=interpolation, mean=HALF, std=HALF)
    clip = processor == "clip"
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else (IMAGENET_MEAN, IMAGENET_STD)
    common: dict[str, Any] = {"interpolation": "bicubic", "mean": mean, "std": std}
    if image_size[0] != image_size[1]:
        return Preprocess(size=image_size, **common)
    side = image_size[0]
    shorter = side if clip else round(side * 256 / 224)
    return Preprocess(size=image_size, resize="shorter", shorter_side=shorter, **common)


def _translate(processor: _Processor, file: Path) -> Preprocess:
    common = _common(processor, file)
    kind = processor.image_processor_type or processor.feature_extractor_type
    square = not kind.startswith(BY_SHORTER_SIDE)
    height, width, shorter = _size(processor.size, square, f"{file}: size")
    if not processor.do_center_crop:
        if shorter is not None:
            raise CheckpointError(
                f"{file}: shortest_edge without a centre crop gives images of any shape, "
                "but the network takes only one size"
            )
        return Preprocess(size=(height, width), **common)
    crop = _size(processor.crop_size, True, f"{file}: crop_size")[:2]
    if shorter is None and (height, width) == crop:
        return Preprocess(size=crop, **common)  # the crop removes nothing
    if shorter is None and height != width:
        raise CheckpointError(f"{file}: a crop out of a {height} x {width} resize is not supported")
    side = height if shorter is None else shorter
    if side < max(crop):
        raise CheckpointError(f"{file}: the crop {crop} is larger than the image resized to {side}")
    return Preprocess(size=crop, resize="shorter", shorter_side=side, **common)


def _common(processor: _Processor, file: Path) -> dict[str, Any]:
    """Return the fields that do not depend on the shape.

    Raises:
        CheckpointError: the file asks for steps that are not supported.
    """
    if not processor.do_resize:
        raise CheckpointError(f"{file}: do_resize is off, but the network takes only one size")
    if not processor.do_rescale or abs(processor.rescale_factor * 255 - 1) > 1e-3:
        raise CheckpointError(
            f"{file}: pixels must be scaled by 1/255 (do_rescale, rescale_factor)"
        )
    if processor.resample not in RESAMPLING:
        known = ", ".join(f"{number} {name}" for number, name in RESAMPLING.items())
        raise CheckpointError(f"{file}: resample is {processor.resample}; allowed are {known}")
    return {
        "interpolation": RESAMPLING[processor.resample],
        "mean": processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0),
        "std": processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0),
    }


def _size(size: Size, square: bool, where: str) -> tuple[int, int, int | None]:
    """Return height, width and shorter side; height and width are 0 if only the latter is given."""
    if isinstance(size, int):
        return (size, size, None) if square else (0, 0, size)
    if isinstance(size, tuple):
        return (*size, None)
    # Newer versions write every key, with null for those that do not apply.
    present = {key: value for key, value in (size or {}).items() if value is not None}
    if present.keys() == {"height", "width"}:
        return present["height"], present["width"], None
    if present.keys() == {"shortest_edge"}:
        return 0, 0, present["shortest_edge"]
    raise CheckpointError(
        f"{where} must have height and width, or shortest_edge, not {sorted(present)}"
    )
