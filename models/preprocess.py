"""How a photo becomes a network's input. No torch: checkpoints, bundles and the service share it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Triple = tuple[float, float, float]


class Preprocess(BaseModel):
    """Resize, crop and normalise.

    Attributes:
        size: height and width of the network's input, pixels.
        resize: `stretch` goes straight to `size`; `shorter` scales the shorter side to
            `shorter_side` and crops the centre.
        shorter_side: pixels, for `shorter`.
        mean, std: per channel, of values in 0..1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int]
    resize: Literal["stretch", "shorter"] = "stretch"
    shorter_side: int | None = Field(default=None, ge=1)
    interpolation: Interpolation = "bilinear"
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
