"""Dual encoders, CLIP and SigLIP: images and texts as vectors in one space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold.bundle.workload import DualWorkload, Method
from tokenfold.models.networks.operators import EAGER, Operators
from tokenfold.models.networks.text_tower import TextConfig, TextTower
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer
from tokenfold.models.reduction.matcher import Matcher


class DualConfig(BaseModel):
    """Configuration of both towers.

    Attributes:
        scores: function from similarities to scores: softmax over texts that exclude each other
            (CLIP), or sigmoid of each text independently (SigLIP).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: VisionConfig
    text: TextConfig
    scores: Literal["softmax", "sigmoid"] = "softmax"

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if self.width != self.text.classes:
            raise ValueError(
                f"image vectors have {self.width} numbers, text vectors {self.text.classes}"
            )
        if self.image.pool == "class+distill":
            raise ValueError(
                "a dual encoder pools by class token, mean or attention, not class+distill"
            )
        return self

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.image.classes or self.image.head_inputs

    def workload(self, method: Method) -> DualWorkload:
        """Return the description that the schedule needs; only images are reduced."""
        image = self.image.workload(method).model_dump(exclude={"kind"})
        return DualWorkload.model_validate({**image, "text": self.text.workload})


class DualEncoder(nn.Module):
    """Two towers, and the scale and bias of the logits.

    A logit is `exp(logit_scale) * cosine + logit_bias`; CLIP's bias is 0.
    """

    def __init__(self, config: DualConfig) -> None:
        super().__init__()
        self.config = config
        self.image = VisionTransformer(config.image)
        self.text = TextTower(config.text)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(()))

    def embed_images(
        self,
        image: Tensor,
        plan: Sequence[int] | None = None,
        matchers: Sequence[Matcher] | None = None,
        *,
        proportional: bool = True,
        ops: Operators = EAGER,
    ) -> Tensor:
        """Map images (B, 3, H, W) to unit vectors (B, width); see `VisionTransformer.forward`."""
        out = self.image(image, plan, matchers, proportional=proportional, ops=ops)
        return F.normalize(out.logits, dim=-1)

    def embed_texts(
        self, ids: Tensor, size: Tensor | None = None, *, ops: Operators = EAGER
    ) -> Tensor:
        """Map ids (B, T) int64 to unit vectors (B, width); see `TextTower.forward`."""
        return F.normalize(self.text(ids, size, ops=ops), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Map unit vectors (I, width) and (T, width) to logits (I, T)."""
        return self.logit_scale.exp() * images @ texts.T + self.logit_bias
