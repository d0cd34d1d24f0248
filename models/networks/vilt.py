"""ViLT: text tokens and image patches in one stream of transformer blocks.

Kim, Son and Kim, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision"
(ICML 2021). Patches keep their order; the published code shuffles them. State-dict names of the
blocks are the official ones.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tokenfold.bundle.pair_workload import PairMethod, Rates, ViltWorkload
from tokenfold.models.networks.blocks import Block, BlockVariant
from tokenfold.models.networks.operators import EAGER, Operators, Tokens
from tokenfold.models.networks.pair import (
    Fused,
    FusionInputs,
    Heads,
    PairConfig,
    PairNetwork,
    image_modality,
    images,
)
from tokenfold.models.networks.stem import (
    ConvStem,
    PatchEmbed,
    Stem,
    check_strides,
    flops_per_patch,
)
from tokenfold.models.reduction.pumer import PuMer


class ViltConfig(PairConfig):
    """Configuration of a ViLT; see `PairConfig` for the fields that it inherits.

    Attributes:
        stem: convolutional stem, see `stem.Stem`; empty for plain patches.
        eps: epsilon of the layer norms of the blocks.
        text_eps: epsilon of the layer norm after the text embedding.
    """

    patch_size: int = Field(default=32, ge=1)
    depth: int = Field(default=12, ge=1)
    eps: float = 1e-6
    stem: Stem = ()
    vocabulary: int = Field(default=30522, ge=1)
    text_eps: float = 1e-12
    layers: tuple[int, ...] = (2, 5, 8)
    rates: Rates = (0.1, 0.3, 0.2)

    @model_validator(mode="after")
    def _check_stem(self) -> Self:
        check_strides(self.stem, self.patch_size)
        return self

    def workload(
        self,
        method: PairMethod,
        *,
        text: int | None = None,
        layers: tuple[int, ...] | None = None,
        rates: Rates | None = None,
    ) -> ViltWorkload:
        """Return the description of this network that the schedule needs, for a text with an image.

        Args:
            text: tokens of the text; None for the maximum.
            layers, rates: layers and shares of PuMer; None for those of the configuration.
        """
        return ViltWorkload(
            method=method,
            text=self.most_text if text is None else text,
            most_text=self.most_text,
            image=self.patches + 1,
            layers=(self.layers if layers is None else layers) if method == "pumer" else (),
            rates=self.rates if rates is None else rates,
            depth=self.depth,
            dim=self.dim,
            mlp_dim=self.mlp_dim,
            metric_dim=self.dim // self.heads_per_layer,
            stem=flops_per_patch(self.stem, self.patch_size, self.dim),
            head=self.dim * self.dim
            + max(head.flops(images(task) * self.dim) for task, head in self.heads.items()),
        )


class TextEmbedding(nn.Module):
    """BERT's embedding without segments: words, positions and a layer norm."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.dim)
        self.positions = nn.Embedding(config.most_text, config.dim)
        self.norm = nn.LayerNorm(config.dim, config.text_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) int64 to tokens (B, T, D)."""
        out: Tensor = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        return out


class Vilt(PairNetwork):
    """A ViLT that reduces its tokens by a plan."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.config: ViltConfig = config
        d = config.dim
        self.text_embed = TextEmbedding(config)
        self.patch_embed: nn.Module = (
            ConvStem(config.stem, d) if config.stem else PatchEmbed(config.patch_size, d, bias=True)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches + 1, d))
        self.modality = nn.Embedding(config.modalities, d)
        variant = BlockVariant(eps=config.eps)
        self.blocks = nn.ModuleList(
            Block(d, config.heads_per_layer, config.mlp_dim, variant) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(d, config.eps)
        self.pooler = nn.Linear(d, d)
        self.heads = Heads(config.heads, d)

    def embed_image(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        *,
        ops: Operators = EAGER,  # noqa: ARG002
    ) -> Tensor:
        """Add the class token, and the positions resized to the grid of the image."""
        trained_grid = self.config.grid
        positions: Tensor = self.pos_embed
        # A graph learns its grid only when it runs, so there even the network's grid is resized.
        if any(isinstance(side, torch.SymInt) for side in grid) or tuple(grid) != trained_grid:
            spatial = positions[0, 1:].unflatten(0, trained_grid)  # (rows, columns, D)
            row_weights, column_weights = (
                _interpolation(*sides, positions) for sides in zip(trained_grid, grid, strict=True)
            )
            spatial = torch.einsum("ri,ijd,cj->rcd", row_weights, spatial, column_weights)
            positions = torch.cat([positions[:, :1], spatial.flatten(0, 1)[None]], dim=1)
        prefix = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([prefix, patches], dim=1) + positions

    def _fuse(self, inputs: FusionInputs, ops: Operators) -> Fused:
        image, image_size = inputs.image, inputs.image_size
        if image_size is None:
            image_size = torch.ones_like(image[:, :, 0], dtype=torch.float32)
        text = self.text_embed(inputs.ids) + self.modality.weight[0]
        image = image + image_modality(self.modality, inputs.second)
        # PuMer needs the modalities apart. A joint merge needs all padding at the end: between
        # other tokens, padding would shift which tokens are sources.
        plan, matchers, weighted = inputs.reduction
        joint = any(matcher is not None and not isinstance(matcher, PuMer) for matcher in matchers)
        order = _around if joint else _after
        words = inputs.ids.shape[1]
        tokens = Tokens.start(order(text, image), order(inputs.text_size, image_size), text=words)
        if joint and inputs.image_size is not None:
            tokens = _padding_last(tokens)
        used = 0
        for block, matcher in zip(self.blocks, matchers, strict=True):
            if not weighted:
                tokens = tokens.unweighted()
            counts: int | tuple[int, ...] = 0
            if isinstance(matcher, PuMer):
                counts, used = tuple(plan[used : used + 3]), used + 3
            elif matcher is not None:
                counts, used = plan[used], used + 1
            tokens = block(tokens, ops, matcher, counts, size=tokens.size)
        pooled = torch.tanh(self.pooler(self.norm(tokens.x[:, 0])))
        if joint:
            first, patches, others = tokens.trace.split([1, image.shape[1], words - 1], dim=1)
            return Fused(pooled, torch.cat([first, others], dim=1), patches)
        return Fused(pooled, tokens.trace[:, :words], tokens.trace[:, words:])


def _interpolation(source: int, target: int, like: Tensor) -> Tensor:
    """Return the weights (target, source) of linear interpolation with aligned corners.

    Resizing by a matrix product can be exported even if the size is known only when a graph runs;
    torch's own resize cannot.

    Args:
        source, target: lengths before and after.
        like: tensor with the device and type of the weights.
    """
    index = torch.arange(target, device=like.device, dtype=torch.float32)
    position = index * (source - 1) / index[-1:].clamp_min(1)  # in units of the source
    distance = (position[:, None] - torch.arange(source, device=like.device)).abs()
    return (1 - distance).clamp_min(0).to(like.dtype)


def _after(text: Tensor, image: Tensor) -> Tensor:
    """Join text and image, text first."""
    return torch.cat([text, image], dim=1)


def _around(text: Tensor, image: Tensor) -> Tensor:
    """Join the text's class token, the image and the rest of the text."""
    return torch.cat([text[:, :1], image, text[:, 1:]], dim=1)


def _padding_last(tokens: Tokens) -> Tokens:
    """Move padding behind all other tokens, before any layer has run."""
    order = (tokens.size == 0).to(torch.int64).argsort(dim=1, stable=True)
    index = order.unsqueeze(-1).expand_as(tokens.x)
    return tokens._replace(
        x=tokens.x.gather(1, index), size=tokens.size.gather(1, order), trace=order.argsort(dim=1)
    )
