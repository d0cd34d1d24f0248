"""Vision-language networks: their configuration, heads and common interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tokenfold.bundle.pair_workload import Rates
from tokenfold.bundle.tasks import PairTask
from tokenfold.models.networks.operators import EAGER, Operators
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer


class HeadConfig(BaseModel):
    """Configuration of the head of one task.

    Attributes:
        classes: number of logits; 1 for a ranking head, which gives a single score.
        hidden: width of `Linear, LayerNorm, GELU, Linear`; 0 for a single linear layer.
        eps: epsilon of that layer norm.
        scores: activation that the head was trained with: softmax for classes that exclude each
            other, sigmoid for independent ones, as is usual for open-ended questions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: int = Field(ge=1)
    hidden: int = Field(default=0, ge=0)
    eps: float = 1e-5
    scores: Literal["softmax", "sigmoid"] = "softmax"

    def build(self, inputs: int) -> nn.Module:
        """Return a new head for vectors of width `inputs`."""
        if not self.hidden:
            return nn.Linear(inputs, self.classes)
        return nn.Sequential(
            nn.Linear(inputs, self.hidden),
            nn.LayerNorm(self.hidden, self.eps),
            nn.GELU(),
            nn.Linear(self.hidden, self.classes),
        )

    def flops(self, inputs: int) -> int:
        """Return the multiply-accumulates for one vector of width `inputs`."""
        if not self.hidden:
            return inputs * self.classes
        return inputs * self.hidden + self.hidden * self.classes


class PairConfig(BaseModel):
    """Configuration fields that all vision-language networks share.

    Sizes are in pixels, widths in channels.

    Attributes:
        image_size: height and width that the position embedding was made for; it is resized for
            other images.
        dim: width of text and image tokens.
        depth: layers in which text and image tokens interact.
        vocabulary: number of word embeddings.
        most_text: maximum tokens of a text.
        modalities: number of modality embeddings: text, image and, if 3, second image.
        heads: configuration of each task's head.
        layers, rates: layers that PuMer reduces, and the shares (prune, merge, text) that it
            removes in each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: tuple[int, int] = (384, 384)
    patch_size: int = Field(ge=1)
    dim: int = Field(default=768, ge=1)
    depth: int = Field(ge=1)
    heads_per_layer: int = Field(default=12, ge=1)
    mlp_dim: int = Field(default=3072, ge=1)
    vocabulary: int = Field(ge=1)
    most_text: int = Field(default=40, ge=1)
    modalities: int = Field(default=2, ge=2, le=3)
    heads: dict[PairTask, HeadConfig] = Field(min_length=1)
    layers: tuple[int, ...]
    rates: Rates

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if any(side < 1 or side % self.patch_size for side in self.image_size):
            raise ValueError(f"patches of {self.patch_size} do not tile {self.image_size}")
        if self.dim % self.heads_per_layer:
            raise ValueError(
                f"the width {self.dim} does not divide into {self.heads_per_layer} heads"
            )
        if any(not 0 <= layer < self.depth for layer in self.layers):
            raise ValueError(f"reducing layers are 0 to {self.depth - 1}, not {self.layers}")
        if "reason" in self.heads and self.modalities < 3:
            raise ValueError(
                f"the task reason needs 3 modality embeddings, the network has {self.modalities}"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in the position embedding."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]


def images(task: PairTask) -> int:
    """Return the number of images that a task takes."""
    return 2 if task == "reason" else 1


class Heads(nn.ModuleDict):
    """Heads of a network, by task. `reason` takes the pooled outputs of two images, joined."""

    def __init__(self, configs: Mapping[PairTask, HeadConfig], pooled: int) -> None:
        super().__init__(
            {task: config.build(images(task) * pooled) for task, config in configs.items()}
        )

    def logits(self, pooled: Tensor, task: PairTask) -> Tensor:
        """Map pooled outputs (B, pooled), or (B, 2 pooled) for `reason`, to logits (B, classes)."""
        out: Tensor = self[task](pooled)
        return out


def image_modality(embedding: nn.Embedding, second: bool | Tensor) -> Tensor:
    """Return the modality embedding (D) of a first or second image: row 1 or 2; row 0 is text.

    Args:
        second: see `FusionInputs`.
    """
    if isinstance(second, Tensor):
        return embedding.weight.index_select(0, second.reshape(1) + 1)[0]
    return embedding.weight[2 if second else 1]


class Fused(NamedTuple):
    """Output of fusing an image with a text.

    Attributes:
        pooled: (B, P), input of the heads.
        text, image: (B, T) and (B, I) int64, the position of each input token among the tokens of
            the last layer, -1 if it was dropped. A network with two streams numbers each stream
            separately; a network with one stream numbers both together, text first.
    """

    pooled: Tensor
    text: Tensor
    image: Tensor


class PairReduction(NamedTuple):
    """Reduction of the tokens in the layers in which text and image interact.

    Attributes:
        plan: flat counts of the reducing layers, one per similarity matcher and three per PuMer
            layer (prune, merge, text).
        matchers: one per layer, None for a layer that does not reduce.
        weighted: whether tokens merge by size and attention counts sizes (ToMe); otherwise tokens
            merge by plain mean and all count as one (PuMer as published).
    """

    plan: Sequence[int]
    matchers: Sequence[Matcher | PuMer | None]
    weighted: bool = True

    def check(self) -> None:
        """Check that the plan has the counts that the matchers need; raise ValueError otherwise."""
        expected = sum(
            3 if isinstance(matcher, PuMer) else 1
            for matcher in self.matchers
            if matcher is not None
        )
        if len(self.plan) != expected:
            raise ValueError(f"the plan has {len(self.plan)} counts; the matchers need {expected}")


class FusionInputs(NamedTuple):
    """Arguments of `PairNetwork.fuse`, with defaults filled in.

    Attributes:
        image: (B, I, D), output of `embed_image`.
        ids: (B, T) int64.
        text_size: (B, T) float32, 1 for a token and 0 for padding, which is at the end.
        image_size: (B, I) float32, likewise, class token included; None without padding.
        second: whether the image is the second of a pair; an int64 scalar in a graph.
    """

    image: Tensor
    ids: Tensor
    text_size: Tensor
    image_size: Tensor | None
    second: bool | Tensor
    reduction: PairReduction


class PairNetwork(nn.Module, ABC):
    """A network that takes one image or two with a text.

    `patch_embed` and `embed_image` run once per image, whatever the number of texts; `fuse`
    combines the image tokens with a text; `heads` give the logits.
    """

    config: PairConfig
    patch_embed: nn.Module
    heads: Heads

    def forward(
        self,
        image: Tensor,
        ids: Tensor,
        text_size: Tensor | None = None,
        *,
        task: PairTask,
        reduction: PairReduction | None = None,
        ops: Operators = EAGER,
    ) -> Tensor:
        """Return the logits (B, classes) of a task.

        Args:
            image: (B, 3, H, W) normalised; (B, 2, 3, H, W) for `reason`.
            ids, text_size, reduction, ops: see `fuse`.
            task: one of the heads.
        """
        side = self.config.patch_size
        grid = image.shape[-2] // side, image.shape[-1] // side
        pooled = []
        for index, pixels in enumerate(image.unbind(1) if images(task) > 1 else [image]):
            tokens = self.embed_image(self.patch_embed(pixels), grid, ops=ops)
            fused = self.fuse(
                tokens, ids, text_size, second=index == 1, reduction=reduction, ops=ops
            )
            pooled.append(fused.pooled)
        return self.heads.logits(torch.cat(pooled, dim=-1), task)

    @abstractmethod
    def embed_image(
        self, patches: Tensor, grid: tuple[int, int], *, ops: Operators = EAGER
    ) -> Tensor:
        """Map patches (B, rows * columns, D) of `patch_embed` to image tokens (B, I, D).

        Args:
            grid: rows and columns of patches.
        """

    def fuse(
        self,
        image: Tensor,
        ids: Tensor,
        text_size: Tensor | None = None,
        *,
        image_size: Tensor | None = None,
        second: bool | Tensor = False,
        reduction: PairReduction | None = None,
        ops: Operators = EAGER,
    ) -> Fused:
        """Run image tokens and a text through the layers in which they interact.

        Args:
            image, ids, image_size, second: see `FusionInputs`.
            text_size: see `FusionInputs`; None without padding.
            reduction: None reduces nothing.
            ops: implementation of attention and reduction.

        Raises:
            ValueError: the plan has another number of counts than the matchers need.
        """
        if reduction is None:
            reduction = PairReduction([], [None] * self.config.depth)
        reduction.check()
        if text_size is None:
            text_size = torch.ones_like(ids, dtype=torch.float32)
        inputs = FusionInputs(image, ids, text_size, image_size, second, reduction)
        return self._fuse(inputs, ops)

    @abstractmethod
    def _fuse(self, inputs: FusionInputs, ops: Operators) -> Fused:
        """Implement `fuse`, whose plan has been checked."""
