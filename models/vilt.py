"""ViLT: text and image patches in one stream of transformer blocks.

Kim, Son and Kim, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision"
(ICML 2021). Patches keep their order, where the published code shuffles them. State-dict names of
the blocks are the official ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tokenfold.bundle.pair_workload import PairMethod, Rates, ViltWorkload
from tokenfold.bundle.tasks import PairTask
from tokenfold.models.blocks import Block
from tokenfold.models.operators import EAGER, Operators, Tokens
from tokenfold.models.pair import Fused, Heads, image_modality, images
from tokenfold.models.pair_config import PairConfig
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.vit import ConvStem, PatchEmbed


class ViltConfig(PairConfig):
    """See `PairConfig`.

    Attributes:
        stem: (channels, stride) of a convolutional stem, as in `VisionConfig`; empty for patches.
        eps, text_eps: of the layer norms, and of the one behind the text embedding.
    """

    patch_size: int = Field(default=32, ge=1)
    depth: int = Field(default=12, ge=1)
    eps: float = 1e-6
    stem: tuple[tuple[int, int], ...] = ()
    vocabulary: int = Field(default=30522, ge=1)
    text_eps: float = 1e-12
    layers: tuple[int, ...] = (2, 5, 8)
    rates: Rates = (0.1, 0.3, 0.2)

    @model_validator(mode="after")
    def _stem_makes_patches(self) -> Self:
        strides = math.prod(stride for _, stride in self.stem)
        if self.stem and strides != self.patch_size:
            raise ValueError(
                f"the strides of the stem multiply to {strides}, not to the patch size "
                f"{self.patch_size}"
            )
        return self

    def workload(
        self,
        method: PairMethod,
        *,
        text: int | None = None,
        layers: tuple[int, ...] | None = None,
        rates: Rates | None = None,
    ) -> ViltWorkload:
        """What the schedule needs to know of this network, for one text with one image.

        Args:
            text: tokens; by default the longest.
            layers, rates: of PuMer; by default the configuration's.
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
            stem=self._stem_flops(),
            head=self.dim * self.dim
            + max(head.flops(images(task) * self.dim) for task, head in self.heads.items()),
        )

    def _stem_flops(self) -> int:
        """Of one patch."""
        if not self.stem:
            return 3 * self.patch_size**2 * self.dim
        total, channels, area = 0, 3, self.patch_size**2
        for out, stride in self.stem:
            area //= stride**2
            total += area * 9 * channels * out
            channels = out
        return total + channels * self.dim


class TextEmbedding(nn.Module):
    """Words, their positions, and a layer norm (BERT, without its segments)."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.dim)
        self.positions = nn.Embedding(config.most_text, config.dim)
        self.norm = nn.LayerNorm(config.dim, config.text_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D)."""
        out: Tensor = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        return out


class Vilt(nn.Module):
    """A ViLT that reduces its tokens by a plan."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        self.text_embed = TextEmbedding(config)
        self.patch_embed: nn.Module = (
            ConvStem(config.stem, d) if config.stem else PatchEmbed(config.patch_size, d, bias=True)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches + 1, d))
        self.modality = nn.Embedding(config.modalities, d)
        self.blocks = nn.ModuleList(
            Block(d, config.heads_per_layer, config.mlp_dim, eps=config.eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(d, config.eps)
        self.pooler = nn.Linear(d, d)
        self.heads = Heads(config.heads, d)

    def forward(
        self,
        image: Tensor,
        ids: Tensor,
        text_size: Tensor | None = None,
        *,
        task: PairTask,
        grids: Tensor | None = None,
        plan: Sequence[int] | None = None,
        matchers: Sequence[Matcher | PuMer | None] | None = None,
        weighted: bool = True,
        run: Operators = EAGER,
    ) -> Tensor:
        """Answer: logits (B, classes).

        Args:
            image: (B, 3, H, W) normalised; (B, 2, 3, H, W) to reason.
            ids: (B, T) int64.
            text_size: (B, T) float32, 1 for a token and 0 for padding.
            task: one of the heads.
            grids: (B, 2) int64, (B, 2, 2) to reason: rows and columns of patches of each image,
                which is in the upper left corner; what is beyond is padding. None if none is.
            plan, matchers, weighted, run: see `PairNetwork.fuse`.
        """
        many = images(task)
        pooled = []
        for at in range(many):
            one = image[:, at] if many > 1 else image
            patches, size = self.patch_embed(one), None
            if grids is None:
                tokens = self.embed_image(patches, self._grid(one))
            else:
                own = grids[:, at] if many > 1 else grids
                tokens, size = self.embed_padded(patches, self._grid(one), own)
            fused = self.fuse(
                tokens,
                ids,
                text_size,
                image_size=size,
                second=at == 1,
                plan=plan,
                matchers=matchers,
                weighted=weighted,
                run=run,
            )
            pooled.append(fused.pooled)
        return self.heads.logits(torch.cat(pooled, dim=-1), task)

    def _grid(self, image: Tensor) -> tuple[int, int]:
        side = self.config.patch_size
        return image.shape[-2] // side, image.shape[-1] // side

    def embed_image(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        *,
        run: Operators = EAGER,  # noqa: ARG002
    ) -> Tensor:
        """Patches (B, rows * columns, D) -> image tokens (B, I, D): class token, positions."""
        own = self.config.grid
        positions: Tensor = self.pos_embed
        # In a graph the grid is known only when it runs; there its own grid is resized to itself.
        if any(isinstance(side, torch.SymInt) for side in grid) or tuple(grid) != own:
            spatial = positions[0, 1:].unflatten(0, own)  # (rows, columns, D)
            down, across = (_between(*sides, positions) for sides in zip(own, grid, strict=True))
            spatial = torch.einsum("ri,ijd,cj->rcd", down, spatial, across)
            positions = torch.cat([positions[:, :1], spatial.flatten(0, 1)[None]], dim=1)
        prefix = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([prefix, patches], dim=1) + positions

    def embed_padded(
        self, patches: Tensor, grid: tuple[int, int], grids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Image tokens of images of several sizes, each as `embed_image` has it alone.

        Args:
            patches: (B, rows * columns, D) of the padded images.
            grid: their rows and columns.
            grids: (B, 2) int64, rows and columns of each image without its padding.

        Returns:
            The tokens (B, I, D), as many as the largest image has, and their sizes (B, I): 0 for
            padding, which is at the end.
        """
        tokens = []
        for item, (rows, columns) in zip(patches.unflatten(1, grid), grids.tolist(), strict=True):
            own = item[:rows, :columns].flatten(0, 1)[None]
            tokens.append(self.embed_image(own, (rows, columns))[0])
        sizes = [item.new_ones(len(item), dtype=torch.float32) for item in tokens]
        return pad_sequence(tokens, batch_first=True), pad_sequence(sizes, batch_first=True)

    def fuse(
        self,
        image: Tensor,
        ids: Tensor,
        text_size: Tensor | None = None,
        *,
        image_size: Tensor | None = None,
        second: bool | Tensor = False,
        plan: Sequence[int] | None = None,
        matchers: Sequence[Matcher | PuMer | None] | None = None,
        weighted: bool = True,
        run: Operators = EAGER,
    ) -> Fused:
        """The image tokens and the text through the blocks; see `PairNetwork.fuse`."""
        if plan is None or matchers is None:
            plan, matchers = [], [None] * self.config.depth
        if text_size is None:
            text_size = torch.ones_like(ids, dtype=torch.float32)
        padded = image_size is not None
        if image_size is None:
            image_size = torch.ones_like(image[:, :, 0], dtype=torch.float32)
        text = self.text_embed(ids) + self.modality.weight[0]
        image = image + image_modality(self.modality, second)
        # PuMer wants the modalities apart. To merge them jointly, all padding has to be at the end:
        # between others it would shift which tokens are sources.
        joint = any(matcher and not isinstance(matcher, PuMer) for matcher in matchers)
        order = _around if joint else _after
        words = ids.shape[1]
        tokens = Tokens.start(order(text, image), order(text_size, image_size), text=words)
        if joint and padded:
            tokens = _padding_last(tokens)
        at = 0
        for block, matcher in zip(self.blocks, matchers, strict=True):
            if not weighted:
                tokens = tokens.unweighted()
            counts: int | tuple[int, ...] = 0
            if isinstance(matcher, PuMer):
                counts, at = tuple(plan[at : at + 3]), at + 3
            elif matcher is not None:
                counts, at = plan[at], at + 1
            tokens = block(tokens, run, matcher, counts, size=tokens.size)
        if at != len(plan):
            raise ValueError(f"a plan of {at} counts is needed, not of {len(plan)}")
        pooled = torch.tanh(self.pooler(self.norm(tokens.x[:, 0])))
        if joint:
            first, patches, others = tokens.trace.split([1, image.shape[1], words - 1], dim=1)
            return Fused(pooled, torch.cat([first, others], dim=1), patches)
        return Fused(pooled, tokens.trace[:, :words], tokens.trace[:, words:])


def _between(own: int, wanted: int, like: Tensor) -> Tensor:
    """Weights (wanted, own) of linear interpolation whose ends stay ends (align_corners).

    As a matrix, for a resize to a size that is known only when a graph runs does not export.
    """
    index = torch.arange(wanted, device=like.device, dtype=torch.float32)
    place = index * (own - 1) / index[-1:].clamp_min(1)  # in the own grid
    away = (place[:, None] - torch.arange(own, device=like.device)).abs()
    return (1 - away).clamp_min(0).to(like.dtype)


def _after(text: Tensor, image: Tensor) -> Tensor:
    """The image behind the text."""
    return torch.cat([text, image], dim=1)


def _around(text: Tensor, image: Tensor) -> Tensor:
    """The text's class token, the image, the rest of the text."""
    return torch.cat([text[:, :1], image, text[:, 1:]], dim=1)


def _padding_last(tokens: Tokens) -> Tokens:
    """The tokens before any layer, those that are absent behind the others."""
    order = (tokens.size == 0).to(torch.int64).argsort(dim=1, stable=True)
    index = order.unsqueeze(-1).expand_as(tokens.x)
    return tokens._replace(
        x=tokens.x.gather(1, index), size=tokens.size.gather(1, order), trace=order.argsort(dim=1)
    )
