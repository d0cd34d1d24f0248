"""`preprocessor_config.json` of a Hugging Face folder -> our pre-processing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenfold.bundle.preprocess import Interpolation, Preprocess, Triple
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.files import read_json

FILE = "preprocessor_config.json"
COMBINED = "processor_config.json"  # that of the text too, as newer versions write it

# Pillow's numbers, as the configurations hold them.
RESAMPLING: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

HALF: Triple = (0.5, 0.5, 0.5)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

# The processors whose single number means the shorter side, not a square.
BY_SHORTER_SIDE = ("CLIP", "Bit", "ConvNext")

Size = dict[str, int | None] | int | tuple[int, int] | None

log = logging.getLogger(__name__)


# Of ViLT's shorter side: that of the images of detection on COCO.
_LONGEST = 1333 / 800


class _Processor(BaseModel):
    """The fields that matter, in the forms of all versions of `transformers`."""

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
    size: Size = 384
    size_divisor: int = Field(default=32, ge=1)
    resample: int = Field(default=3)


def read(folder: Path, family: str, image_size: tuple[int, int]) -> Preprocess:
    """The folder's pre-processing, or the family's usual one where the file is missing.

    A square resize before a centre crop (DeiT's `size` 256, `crop_size` 224) becomes a resize of
    the shorter side: what the networks were trained and evaluated with.

    Args:
        family: `vit`, `deit`, `dinov2`, `clip` or `siglip`.
        image_size: height and width by the network's own configuration, pixels.

    Raises:
        CheckpointError: the file is not valid, or asks for steps that the service does not do.
    """
    file = folder / FILE
    content = read_json(file) if file.exists() else None
    if content is None and (folder / COMBINED).exists():
        file = folder / COMBINED
        content = read_json(file).get("image_processor")
    if content is None:
        log.warning("%s is missing: assuming the usual pre-processing of %s", folder / FILE, family)
        return usual(family, image_size)
    try:
        processor = _Processor.model_validate(content)
        return _translate(processor, file)
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{file}: {at}: {problem['msg']}") from error


def read_vilt(folder: Path, image_size: tuple[int, int], patch_size: int) -> Preprocess:
    """The pre-processing of a ViLT's folder, or the usual one where the file is missing.

    Args:
        image_size: height and width that its positions are made for, pixels.
        patch_size: pixels, what sides are cut down to a multiple of.

    Raises:
        CheckpointError: as `read`, or sides that patches do not tile.
    """
    file = folder / FILE
    if not file.exists():
        log.warning("%s is missing: assuming the usual pre-processing of ViLT", file)
        return usual_vilt(image_size, patch_size)
    content = read_json(file)
    try:
        processor = _ViltProcessor.model_validate(content)
        kind = processor.image_processor_type or processor.feature_extractor_type
        if kind and not kind.startswith("Vilt"):
            return _translate(_Processor.model_validate(content), file)
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{file}: {at}: {problem['msg']}") from error
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


def usual_vilt(image_size: tuple[int, int], patch_size: int) -> Preprocess:
    """The published pre-processing of ViLT, at the image size of the position embedding."""
    return _bounded(image_size, min(image_size), patch_size, interpolation="bicubic")


def _bounded(image_size: tuple[int, int], shorter: int, multiple: int, **common: Any) -> Preprocess:
    return Preprocess(
        size=image_size,
        resize="bounded",
        shorter_side=shorter,
        longest=int(_LONGEST * shorter),
        multiple=multiple,
        **common,
    )


def usual(family: str, image_size: tuple[int, int]) -> Preprocess:
    """What the family's networks on the hub come with, at an image size."""
    if family in ("vit", "siglip"):
        interpolation: Interpolation = "bilinear" if family == "vit" else "bicubic"
        return Preprocess(size=image_size, interpolation=interpolation, mean=HALF, std=HALF)
    clip = family == "clip"
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
                f"{file}: shortest_edge without a centre crop leaves images of any shape, "
                "but the network takes one size only"
            )
        return Preprocess(size=(height, width), **common)
    crop = _size(processor.crop_size, True, f"{file}: crop_size")[:2]
    if shorter is None and (height, width) == crop:
        return Preprocess(size=crop, **common)  # the crop takes nothing away
    if shorter is None and height != width:
        raise CheckpointError(f"{file}: a crop out of a {height} x {width} resize is not supported")
    side = height if shorter is None else shorter
    if side < max(crop):
        raise CheckpointError(f"{file}: the crop {crop} is larger than the image resized to {side}")
    return Preprocess(size=crop, resize="shorter", shorter_side=side, **common)


def _common(processor: _Processor, file: Path) -> dict[str, Any]:
    """What does not depend on the shape, after a look at what is not supported."""
    if not processor.do_resize:
        raise CheckpointError(f"{file}: do_resize is off, but the network takes one size only")
    if not processor.do_rescale or abs(processor.rescale_factor * 255 - 1) > 1e-3:
        raise CheckpointError(
            f"{file}: pixels have to be scaled by 1/255 (do_rescale, rescale_factor)"
        )
    if processor.resample not in RESAMPLING:
        known = ", ".join(f"{number} {name}" for number, name in RESAMPLING.items())
        raise CheckpointError(f"{file}: resample is {processor.resample}, not one of {known}")
    return {
        "interpolation": RESAMPLING[processor.resample],
        "mean": processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0),
        "std": processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0),
    }


def _size(size: Size, square: bool, where: str) -> tuple[int, int, int | None]:
    """Height, width and, where only that is given, the shorter side (then the others are 0)."""
    if isinstance(size, int):
        return (size, size, None) if square else (0, 0, size)
    if isinstance(size, tuple):
        return (*size, None)
    # Newer versions write every key and null for those that do not apply.
    given = {key: value for key, value in (size or {}).items() if value is not None}
    if given.keys() == {"height", "width"}:
        return given["height"], given["width"], None
    if given.keys() == {"shortest_edge"}:
        return 0, 0, given["shortest_edge"]
    raise CheckpointError(f"{where} needs height and width, or shortest_edge, not {sorted(given)}")
