"""`open_clip_config.json`, as on OpenCLIP's hub pages: what the weights do not show."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenfold.bundle.preprocess import Interpolation, Triple
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.files import read_json

CONFIG = "open_clip_config.json"
HEAD_WIDTH = 64

# Keys that the weights show, or that change nothing at inference.
SHOWN = {
    "layers", "mlp_ratio", "patch_size", "patch_dropout", "output_tokens",
    "timm_model_pretrained", "timm_proj_bias", "timm_drop", "timm_drop_path",
    "context_length", "vocab_size", "width", "proj_bias", "tokenizer_kwargs",
}  # fmt: skip


class ImageConfig(BaseModel):
    """`vision_cfg`: what changes the result and the weights do not show; all else is refused."""

    model_config = ConfigDict(extra="allow")

    image_size: int | tuple[int, int] | None = None
    head_width: int = Field(default=HEAD_WIDTH, ge=1)
    timm_model_name: str | None = None
    timm_pool: str = "avg"
    timm_proj: str | None = "linear"
    pool_type: Literal["tok"] = "tok"

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


class Norm(BaseModel):
    """`norm_kwargs`."""

    model_config = ConfigDict(extra="forbid")

    eps: float = Field(default=1e-5, gt=0)


class Act(BaseModel):
    """`act_kwargs`."""

    model_config = ConfigDict(extra="forbid")

    approximate: Literal["none", "tanh"] = "none"


class TowerConfig(BaseModel):
    """`text_cfg`."""

    model_config = ConfigDict(extra="allow")

    heads: int | None = Field(default=None, ge=1)
    hf_tokenizer_name: str = ""
    no_causal_mask: bool = False
    pool_type: Literal["argmax", "last"] = "argmax"
    norm_kwargs: Norm = Norm()
    act_kwargs: Act = Act()


class NetworkConfig(BaseModel):
    """`model_cfg`."""

    model_config = ConfigDict(extra="ignore")

    vision_cfg: ImageConfig = ImageConfig()
    text_cfg: TowerConfig = TowerConfig()
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
    """The configuration; None where there is no such file.

    Raises:
        CheckpointError: it is not valid, or asks for what is not supported.
    """
    if not file.exists():
        return None
    try:
        config = Config.model_validate(read_json(file))
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{CONFIG}: {at}: {problem['msg']}") from error
    network = config.model_cfg
    for name, part in (("vision_cfg", network.vision_cfg), ("text_cfg", network.text_cfg)):
        for key, value in (part.model_extra or {}).items():
            if key not in SHOWN and value:
                raise CheckpointError(f"{CONFIG}: {name}.{key} = {value!r} is not supported")
    return config
