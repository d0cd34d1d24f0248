"""Dual encoders, CLIP and SigLIP: images and texts as vectors that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold.bundle.workload import DualWorkload, Method
from tokenfold.models.operators import EAGER, Operators
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.text_tower import TextConfig, TextTower
from tokenfold.models.vit import VisionConfig, VisionTransformer


class DualConfig(BaseModel):
    """Both towers.

    Attributes:
        scores: how similarities become scores: of texts that exclude each other (softmax, CLIP), or
            each right or wrong by itself (sigmoid, SigLIP).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: VisionConfig
    text: TextConfig
    scores: Literal["softmax", "sigmoid"] = "softmax"

    @model_validator(mode="after")
    def _one_space(self) -> Self:
        if self.width != self.text.classes:
            raise ValueError(
                f"images become vectors of {self.width} numbers, texts of {self.text.classes}"
            )
        if self.image.pool == "class+distill":
            raise ValueError("a dual encoder pools by class token, mean or attention")
        return self

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.image.classes or self.image.head_inputs

    def workload(self, method: Method) -> DualWorkload:
        """What the schedule needs to know of this network: images are reduced, texts are not."""
        image = self.image.workload(method).model_dump(exclude={"kind"})
        return DualWorkload.model_validate({**image, "text": self.text.workload})


class DualEncoder(nn.Module):
    """Two towers, and what turns the cosine of two vectors into a logit.

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
        run: Operators = EAGER,
    ) -> Tensor:
        """(B, 3, H, W) normalised -> (B, width) of length 1; see `VisionTransformer.forward`."""
        out = self.image(image, plan, matchers, proportional=proportional, run=run)
        return F.normalize(out.logits, dim=-1)

    def embed_texts(
        self, ids: Tensor, size: Tensor | None = None, *, run: Operators = EAGER
    ) -> Tensor:
        """(B, T) int64 -> (B, width) of length 1; see `TextTower.forward`."""
        return F.normalize(self.text(ids, size, run=run), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """(I, width) and (T, width) of length 1 -> (I, T)."""
        return self.logit_scale.exp() * images @ texts.T + self.logit_bias
