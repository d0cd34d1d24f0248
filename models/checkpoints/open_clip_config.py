"""Reader of `open_clip_config.json`, for the facts that the weights do not show."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tokenfold.bundle.preprocess import Interpolation, Triple
from tokenfold.models.checkpoints.checkpoint import CheckpointError, parse_settings
from tokenfold.models.checkpoints.files import read_json

CONFIG = "open_clip_config.json"
HEAD_WIDTH = 64

# Keys that the weights show, or that change nothing at inference.
VISIBLE_KEYS = {
    "layers", "mlp_ratio", "patch_size", "patch_dropout", "output_tokens",
    "timm_model_pretrained", "timm_proj_bias", "timm_drop", "timm_drop_path",
    "context_length", "vocab_size", "width", "proj_bias", "tokenizer_kwargs",
}  # fmt: skip


class ImageConfig(BaseModel):
    """`vision_cfg`: fields that change the result and that the weights do not show.

    `read` rejects other fields, except those in `VISIBLE_KEYS`.
    """

    model_config = ConfigDict(extra="allow")

    image_size: int | tuple[int, int] | None = None
    head_width: int = Field(default=HEAD_WIDTH, ge=1)
    timm_model_name: str | None = None
    timm_pool: str = "avg"
    timm_proj: str | None = "linear"
    pool_type: Literal["tok"] = "tok"

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


class NormConfig(BaseModel):
    """`norm_kwargs`."""

    model_config = ConfigDict(extra="forbid")

    eps: float = Field(default=1e-5, gt=0)


class ActivationConfig(BaseModel):
    """`act_kwargs`."""

    model_config = ConfigDict(extra="forbid")

    approximate: Literal["none", "tanh"] = "none"


class TextTowerConfig(BaseModel):
    """`text_cfg`."""

    model_config = ConfigDict(extra="allow")

    heads: int | None = Field(default=None, ge=1)
    hf_tokenizer_name: str = ""
    no_causal_mask: bool = False
    pool_type: Literal["argmax", "last"] = "argmax"
    norm_kwargs: NormConfig = NormConfig()
    act_kwargs: ActivationConfig = ActivationConfig()


class NetworkConfig(BaseModel):
    """`model_cfg`."""

    model_config = ConfigDict(extra="ignore")

    vision_cfg: ImageConfig = ImageConfig()
    text_cfg: TextTowerConfig = TextTowerConfig()
    quick_gelu: bool = False


class PixelsConfig(BaseModel):
    """`preprocess_cfg`."""

    model_config = ConfigDict(extra="ignore")

    mean: Triple | None = None
    std: Triple | None = None
    interpolation: Interpolation = "bicubic"
    resize_mode: Literal["shortest", "squash"] | None = None


class Config(BaseModel):
    """`open_clip_config.json`."""

    model_config = ConfigDict(extra="ignore")

    model_cfg: NetworkConfig = NetworkConfig()
    preprocess_cfg: PixelsConfig = PixelsConfig()


def read(file: Path) -> Config | None:
    """Read the configuration; None if there is no such file.

    Raises:
        CheckpointError: the configuration is invalid or not supported.
    """
    if not file.exists():
        return None
    config = parse_settings(Config, read_json(file), f"{CONFIG}: ")
    network = config.model_cfg
    for name, part in (("vision_cfg", network.vision_cfg), ("text_cfg", network.text_cfg)):
        for key, value in (part.model_extra or {}).items():
            if key not in VISIBLE_KEYS and value:
                raise CheckpointError(f"{CONFIG}: {name}.{key} = {value!r} is not supported")
    return config
