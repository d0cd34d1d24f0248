"""The ViT family: ViT/AugReg, DeiT, distilled DeiT, DeiT-III, MAE, CLIP's tower, DINOv2.

One network; the configuration says which member. State-dict names are timm's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from tokenfold.bundle.workload import Method, Workload
from tokenfold.models.blocks import Activation, Block
from tokenfold.models.operators import EAGER, Operators, Tokens
from tokenfold.models.pooling import AttentionPool, fixed_flops, per_token_flops
from tokenfold.models.reduction.matcher import Matcher

Pool = Literal["class", "mean", "class+mean", "class+distill", "attention"]


class VisionConfig(BaseModel):
    """Which member of the family. Sizes are in pixels, widths in channels.

    Attributes:
        stem: (channels, stride) of the 3x3 convolutions of a convolutional stem (Xiao et al. 2021);
            empty for plain patches.
        cut_edges: whether an image may have sides that patches do not tile, and loses what is left
            over at its right and bottom (SigLIP's patches of 14 on 384 pixels).
        position_prefix: whether the position embedding covers the class and distillation tokens.
        pre_norm: a layer norm before the first block (CLIP).
        final_norm: where the last layer norm stands: before or after pooling, or nowhere.
        pool: what the head sees. `mean` and `class+mean` weigh patches by size; `class+distill`
            averages two heads; `attention` is a learned token that asks the others (SigLIP).
        classes: what the head gives: logits, or the width of an embedding; 0 leaves the head out.
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
    stem: tuple[tuple[int, int], ...] = ()
    patch_bias: bool = True
    cut_edges: bool = False
    position_prefix: bool = True
    pre_norm: bool = False
    final_norm: Literal["before", "after", "none"] = "before"
    pool: Pool = "class"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        cut = self.cut_edges and not self.stem
        if any(
            side < self.patch_size or (side % self.patch_size and not cut)
            for side in self.image_size
        ):
            raise ValueError(f"patches of {self.patch_size} do not tile {self.image_size}")
        if self.dim % self.heads:
            raise ValueError(f"the width {self.dim} does not divide into {self.heads} heads")
        if self.distill_token and not self.class_token:
            raise ValueError("a distillation token comes with a class token before it")
        if self.pool == "class+distill" and not self.distill_token:
            raise ValueError("pool class+distill needs a distillation token")
        if self.pool.startswith("class") and not self.class_token:
            raise ValueError(f"pool {self.pool} needs a class token")
        if self.final_norm == "after" and self.pool not in ("class", "mean"):
            raise ValueError(f"a norm after pooling does not go with pool {self.pool}")
        if self.pool == "class+distill" and not self.classes:
            raise ValueError("pool class+distill averages two heads; it needs classes")
        strides = math.prod(stride for _, stride in self.stem)
        if self.stem and strides != self.patch_size:
            raise ValueError(
                f"the strides of the stem multiply to {strides}, not to the patch size "
                f"{self.patch_size}"
            )
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
        """Leading tokens that are no patch."""
        return int(self.class_token) + int(self.distill_token)

    @property
    def head_inputs(self) -> int:
        return 2 * self.dim if self.pool == "class+mean" else self.dim

    def workload(self, method: Method) -> Workload:
        """What the schedule needs to know of this network."""
        heads = 2 if self.pool == "class+distill" else 1
        pooled = self.pool == "attention"
        return Workload(
            method=method,
            tokens=self.patches + self.protected,
            protected=self.protected,
            depth=self.depth,
            dim=self.dim,
            mlp_dim=self.mlp_dim,
            mlp_products=3 if self.gated_mlp else 2,
            metric_dim=self.dim // self.heads,
            stem=self._stem_flops(),
            head=heads * self.head_inputs * self.classes
            + (fixed_flops(self.dim, self.mlp_dim) if pooled else 0),
            head_per_token=per_token_flops(self.dim) if pooled else 0,
        )

    def _stem_flops(self) -> int:
        if not self.stem:
            return self.patches * 3 * self.patch_size**2 * self.dim
        total, channels, (height, width) = 0, 3, self.image_size
        for out, stride in self.stem:
            height, width = -(-height // stride), -(-width // stride)
            total += height * width * 9 * channels * out
            channels = out
        return total + self.patches * channels * self.dim


class VisionOutput(NamedTuple):
    """Logits (B, classes), final sizes (B, M), and the slots (B, N) of the input tokens."""

    logits: Tensor
    size: Tensor
    slots: Tensor


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one linear map."""

    def __init__(self, patch_size: int, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.proj(image)
        return out.flatten(2).transpose(1, 2)  # (B, patches, D)


class ConvStem(nn.Module):
    """3x3 convolutions (channels, stride) to one position a token, then 1x1 to the width."""

    def __init__(self, stem: Sequence[tuple[int, int]], dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out, stride in stem:
            layers += [
                nn.Conv2d(channels, out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        layers.append(nn.Conv2d(channels, dim, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.layers(image)
        return out.flatten(2).transpose(1, 2)  # (B, patches, D)


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
        self.blocks = nn.ModuleList(
            Block(
                d,
                config.heads,
                config.mlp_dim,
                activation=config.activation,
                gated_mlp=config.gated_mlp,
                qkv_bias=config.qkv_bias,
                qk_norm=config.qk_norm,
                layer_scale=config.layer_scale,
                eps=config.eps,
            )
            for _ in range(config.depth)
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
        run: Operators = EAGER,
    ) -> VisionOutput:
        """Classify.

        Args:
            image: (B, 3, H, W) normalised.
            plan: tokens to remove in each layer, `depth` counts; None reduces nothing.
            matchers: one per layer; needed with a plan.
            proportional: whether attention counts sizes. Off for MAE trained without ToMe.
            run: who runs attention and reduction.
        """
        return self.classify(self.embed(self.patch_embed(image)), plan, matchers, proportional, run)

    def embed(self, patches: Tensor) -> Tensor:
        """Patches (B, patches, D) -> tokens (B, N, D): prefix tokens and positions added."""
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
        run: Operators,
    ) -> VisionOutput:
        """Tokens (B, N, D) through the blocks and the head; arguments as for `forward`."""
        depth = self.config.depth
        if plan is not None and (len(plan) != depth or matchers is None or len(matchers) != depth):
            raise ValueError(f"a plan and matchers for {depth} layers are needed")
        tokens = Tokens.start(x)
        size = None  # before the first reduction all tokens count as 1
        for layer, block in enumerate(self.blocks):
            if plan is None or matchers is None:
                tokens = block(tokens, run)
                continue
            tokens = block(tokens, run, matchers[layer], plan[layer], size=size)
            # Without proportion every token counts as 1, and no token still as 0.
            size = tokens.size if proportional else (tokens.size > 0).float()
        return VisionOutput(self.logits(tokens, size, run), tokens.size, tokens.trace)

    def logits(self, tokens: Tokens, size: Tensor | None, run: Operators) -> Tensor:
        """Pool and classify: (B, classes).

        Args:
            size: (B, N), what attention counts a token as; None where all count as 1.
        """
        config = self.config
        x = self.norm(tokens.x)
        if config.pool == "class+distill":
            both: Tensor = self.head(x[:, 0]) + self.head_dist(x[:, 1])
            return both / 2
        pooled = self.attn_pool(x, size, run) if config.pool == "attention" else x[:, 0]
        if "mean" in config.pool:
            weighted = x * tokens.size.unsqueeze(-1).to(x.dtype)
            present = tokens.size[:, config.protected :].sum(1, keepdim=True)
            mean = weighted[:, config.protected :].sum(1) / present.to(x.dtype)
            pooled = mean if config.pool == "mean" else torch.cat([pooled, mean], dim=-1)
        out: Tensor = self.head(self.fc_norm(pooled))
        return out
