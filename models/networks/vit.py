"""Vision transformers: ViT/AugReg, DeiT, distilled DeiT, DeiT-III, MAE, CLIP's tower, DINOv2.

One network class covers all of them; the configuration selects the variant. State-dict names are
timm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tokenfold.bundle.workload import Method, Workload
from tokenfold.models.networks.blocks import Activation, Block, BlockVariant
from tokenfold.models.networks.operators import EAGER, Operators, Tokens
from tokenfold.models.networks.pooling import AttentionPool, fixed_flops, per_token_flops
from tokenfold.models.networks.stem import (
    ConvStem,
    PatchEmbed,
    Stem,
    check_strides,
    flops_per_patch,
)
from tokenfold.models.reduction.matcher import Matcher

Pool = Literal["class", "mean", "class+mean", "class+distill", "attention"]


class VisionConfig(BaseModel):
    """Configuration of a vision transformer. Sizes are in pixels, widths in channels.

    Attributes:
        stem: convolutional stem, see `stem.Stem`; empty for plain patches.
        cut_edges: whether an image may have sides that patches do not tile, whose right and bottom
            remainders are cut off (SigLIP's patches of 14 on 384 pixels).
        position_prefix: whether the position embedding covers the class and distillation tokens.
        pre_norm: whether a layer norm precedes the first block (CLIP).
        final_norm: position of the last layer norm: before or after pooling, or none.
        pool: input of the head. `mean` and `class+mean` weigh patches by size; `class+distill`
            averages two heads; `attention` is attention pooling (SigLIP).
        classes: number of logits, or width of the embedding; 0 leaves the head out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = Field(default=16, ge=1)
    dim: int = Field(ge=1)
    depth: int = Field(ge=1)
    heads: int = Field(ge=1)
    mlp_dim: int = Field(ge=1)
    classes: int = Field(ge=0)
    head_bias: bool = True
    class_token: bool = True
    distill_token: bool = False
    activation: Activation = "gelu"
    gated_mlp: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    eps: float = 1e-6
    stem: Stem = ()
    patch_bias: bool = True
    cut_edges: bool = False
    position_prefix: bool = True
    pre_norm: bool = False
    final_norm: Literal["before", "after", "none"] = "before"
    pool: Pool = "class"

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        cut = self.cut_edges and not self.stem
        if any(
            side < self.patch_size or (side % self.patch_size and not cut)
            for side in self.image_size
        ):
            raise ValueError(f"patches of {self.patch_size} do not tile {self.image_size}")
        if self.dim % self.heads:
            raise ValueError(f"the width {self.dim} does not divide into {self.heads} heads")
        if self.distill_token and not self.class_token:
            raise ValueError("a distillation token needs a class token before it")
        if self.pool == "class+distill" and not self.distill_token:
            raise ValueError("pool class+distill needs a distillation token")
        if self.pool.startswith("class") and not self.class_token:
            raise ValueError(f"pool {self.pool} needs a class token")
        if self.final_norm == "after" and self.pool not in ("class", "mean"):
            raise ValueError(f"a norm after pooling needs pool class or mean, not {self.pool}")
        if self.pool == "class+distill" and not self.classes:
            raise ValueError("pool class+distill averages two heads, so it needs classes > 0")
        check_strides(self.stem, self.patch_size)
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def protected(self) -> int:
        """Number of leading tokens that are not patches."""
        return int(self.class_token) + int(self.distill_token)

    @property
    def head_inputs(self) -> int:
        return 2 * self.dim if self.pool == "class+mean" else self.dim

    def workload(self, method: Method) -> Workload:
        """Return the description of this network that the schedule needs."""
        heads = 2 if self.pool == "class+distill" else 1
        attention_pool = self.pool == "attention"
        return Workload(
            method=method,
            tokens=self.patches + self.protected,
            protected=self.protected,
            depth=self.depth,
            dim=self.dim,
            mlp_dim=self.mlp_dim,
            mlp_products=3 if self.gated_mlp else 2,
            metric_dim=self.dim // self.heads,
            stem=self.patches * flops_per_patch(self.stem, self.patch_size, self.dim),
            head=heads * self.head_inputs * self.classes
            + (fixed_flops(self.dim, self.mlp_dim) if attention_pool else 0),
            head_per_token=per_token_flops(self.dim) if attention_pool else 0,
        )


class VisionOutput(NamedTuple):
    """Logits (B, classes), final sizes (B, M), and composed slots (B, N) of the input tokens."""

    logits: Tensor
    size: Tensor
    slots: Tensor


class VisionTransformer(nn.Module):
    """A ViT that reduces its tokens by a plan."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        self.patch_embed: nn.Module = (
            ConvStem(config.stem, d)
            if config.stem
            else PatchEmbed(config.patch_size, d, bias=config.patch_bias)
        )
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        if config.distill_token:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, d))
        positions = config.patches + (config.protected if config.position_prefix else 0)
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, d))
        self.norm_pre: nn.Module = nn.LayerNorm(d, config.eps) if config.pre_norm else nn.Identity()
        variant = BlockVariant(
            activation=config.activation,
            gated_mlp=config.gated_mlp,
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            layer_scale=config.layer_scale,
            eps=config.eps,
        )
        self.blocks = nn.ModuleList(
            Block(d, config.heads, config.mlp_dim, variant) for _ in range(config.depth)
        )
        norm_at = config.final_norm
        self.norm: nn.Module = nn.LayerNorm(d, config.eps) if norm_at == "before" else nn.Identity()
        self.fc_norm: nn.Module = (
            nn.LayerNorm(d, config.eps) if norm_at == "after" else nn.Identity()
        )
        if config.pool == "attention":
            self.attn_pool = AttentionPool(
                d, config.heads, config.mlp_dim, activation=config.activation, eps=config.eps
            )
        self.head: nn.Module = (
            nn.Linear(config.head_inputs, config.classes, bias=config.head_bias)
            if config.classes
            else nn.Identity()
        )
        if config.pool == "class+distill":
            self.head_dist = nn.Linear(d, config.classes)

    def forward(
        self,
        image: Tensor,
        plan: Sequence[int] | None = None,
        matchers: Sequence[Matcher] | None = None,
        *,
        proportional: bool = True,
        ops: Operators = EAGER,
    ) -> VisionOutput:
        """Classify images.

        Args:
            image: (B, 3, H, W) normalised.
            plan: tokens to remove in each layer, `depth` counts; None reduces nothing.
            matchers: one per layer; required with a plan.
            proportional: whether attention counts sizes. Off for MAE trained without ToMe.
            ops: implementation of attention and reduction.
        """
        return self.classify(self.embed(self.patch_embed(image)), plan, matchers, proportional, ops)

    def embed(self, patches: Tensor) -> Tensor:
        """Add prefix tokens and positions to patches (B, patches, D): tokens (B, N, D)."""
        config = self.config
        prefix = []
        if config.class_token:
            prefix.append(self.cls_token.expand(patches.shape[0], -1, -1))
        if config.distill_token:
            prefix.append(self.dist_token.expand(patches.shape[0], -1, -1))
        if config.position_prefix:
            x = torch.cat([*prefix, patches], dim=1) + self.pos_embed
        else:
            x = torch.cat([*prefix, patches + self.pos_embed], dim=1)
        out: Tensor = self.norm_pre(x)
        return out

    def classify(
        self,
        x: Tensor,
        plan: Sequence[int] | None,
        matchers: Sequence[Matcher] | None,
        proportional: bool,
        ops: Operators,
    ) -> VisionOutput:
        """Run tokens (B, N, D) through the blocks and the head; see `forward` for the arguments."""
        depth = self.config.depth
        if plan is not None and (len(plan) != depth or matchers is None or len(matchers) != depth):
            raise ValueError(f"the plan and the matchers need an entry for each of {depth} layers")
        tokens = Tokens.start(x)
        size = None  # before the first reduction all tokens count as 1
        for layer, block in enumerate(self.blocks):
            if plan is None or matchers is None:
                tokens = block(tokens, ops)
                continue
            tokens = block(tokens, ops, matchers[layer], plan[layer], size=size)
            # Without proportional attention every token counts as 1, and padding as 0.
            size = tokens.size if proportional else (tokens.size > 0).float()
        return VisionOutput(self.logits(tokens, size, ops), tokens.size, tokens.trace)

    def logits(self, tokens: Tokens, size: Tensor | None, ops: Operators) -> Tensor:
        """Pool tokens and return the logits (B, classes).

        Args:
            size: (B, N), size of each token in attention; None counts all as 1.
        """
        config = self.config
        x = self.norm(tokens.x)
        if config.pool == "class+distill":
            both: Tensor = self.head(x[:, 0]) + self.head_dist(x[:, 1])
            return both / 2
        pooled = self.attn_pool(x, size, ops) if config.pool == "attention" else x[:, 0]
        if "mean" in config.pool:
            weighted = x * tokens.size.unsqueeze(-1).to(x.dtype)
            present = tokens.size[:, config.protected :].sum(1, keepdim=True)
            mean = weighted[:, config.protected :].sum(1) / present.to(x.dtype)
            pooled = mean if config.pool == "mean" else torch.cat([pooled, mean], dim=-1)
        out: Tensor = self.head(self.fc_norm(pooled))
        return out
