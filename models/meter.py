"""METER: an image tower and a text tower, then layers in which both attend to each other.

Dou et al., "An Empirical Study of Training End-to-End Vision-and-Language Transformers" (CVPR
2022): CLIP's ViT and RoBERTa. Its published code runs the text layer and the image layer of a step
side by side; PuMer's runs the text layer first. Checkpoints want the form they were trained in.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from tokenfold.bundle.pair_workload import MeterWorkload, PairMethod, Rates, even_widths
from tokenfold.bundle.tasks import PairTask
from tokenfold.models.clip import ClipTower
from tokenfold.models.cross import CrossPair, Form
from tokenfold.models.operators import EAGER, Operators, Tokens
from tokenfold.models.pair import Fused, Heads, image_modality, images
from tokenfold.models.pair_config import PairConfig
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.roberta import TextTower
from tokenfold.models.vit import PatchEmbed


class MeterConfig(PairConfig):
    """See `PairConfig`; a layer there is a step here, a text layer and an image layer.

    Attributes:
        form: whether the image layers see the text before or behind its own layer.
        protect_class: whether PuMer spares the image's class token, from which half of an answer is
            read. Not so as published.
        vision_depth, text_depth: layers of the towers.
        cross_eps: of the layer norms in the cross-modal layers.
        vision_merged: tokens that ToMe removes in each layer of the image tower. PuMer leaves it
            alone: 0.
    """

    form: Form
    protect_class: bool
    patch_size: int = Field(default=16, ge=1)
    depth: int = Field(default=6, ge=1)
    vision_depth: int = Field(default=11, ge=1)
    text_depth: int = Field(default=12, ge=1)
    cross_eps: float = 1e-12
    vision_merged: int = Field(default=0, ge=0)
    vocabulary: int = Field(default=50265, ge=1)
    layers: tuple[int, ...] = (0, 1, 2, 3)
    rates: Rates = (0.2, 0.2, 0.2)

    def workload(
        self,
        method: PairMethod,
        *,
        text: int | None = None,
        layers: tuple[int, ...] | None = None,
        rates: Rates | None = None,
    ) -> MeterWorkload:
        """What the schedule needs to know of this network, for one text with one image.

        Args:
            method: `none` or `pumer`; ToMe reduces the image tower, by `vision_merged`.
            text: tokens; by default the longest.
            layers, rates: of PuMer; by default the configuration's.

        Raises:
            ValueError: the method is another.
        """
        widths = even_widths(self.patches + 1, self.vision_merged, self.vision_depth)
        return MeterWorkload(
            method=method,
            form=self.form,
            text=self.most_text if text is None else text,
            most_text=self.most_text,
            image=widths[-1],
            layers=(self.layers if layers is None else layers) if method == "pumer" else (),
            rates=self.rates if rates is None else rates,
            depth=self.depth,
            dim=self.dim,
            mlp_dim=self.mlp_dim,
            metric_dim=self.dim // self.heads_per_layer,
            vision_widths=tuple(widths),
            text_depth=self.text_depth,
            stem=3 * self.patch_size**2 * self.dim,
            head=2 * self.dim * self.dim
            + max(head.flops(images(task) * 2 * self.dim) for task, head in self.heads.items()),
        )


class Meter(nn.Module):
    """A METER that reduces its tokens by a plan."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.config = config
        d, heads, hidden = config.dim, config.heads_per_layer, config.mlp_dim
        self.patch_embed: nn.Module = PatchEmbed(config.patch_size, d, bias=False)
        self.vision = ClipTower(config.grid, d, config.vision_depth, heads, hidden)
        self.text = TextTower(
            config.vocabulary, config.most_text, d, config.text_depth, heads, hidden
        )
        self.text_transform = nn.Linear(d, d)
        self.image_transform = nn.Linear(d, d)
        self.modality = nn.Embedding(config.modalities, d)
        self.pairs = nn.ModuleList(
            CrossPair(
                d,
                heads,
                hidden,
                config.cross_eps,
                form=config.form,
                protect_class=config.protect_class,
            )
            for _ in range(config.depth)
        )
        self.text_pooler = nn.Linear(d, d)
        self.image_pooler = nn.Linear(d, d)
        self.heads = Heads(config.heads, 2 * d)

    def forward(
        self,
        image: Tensor,
        ids: Tensor,
        text_size: Tensor | None = None,
        *,
        task: PairTask,
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
            plan, matchers, weighted, run: see `PairNetwork.fuse`.
        """
        side = self.config.patch_size
        grid = image.shape[-2] // side, image.shape[-1] // side
        pooled = []
        for at, one in enumerate(image.unbind(1) if images(task) > 1 else [image]):
            tokens = self.embed_image(self.patch_embed(one), grid, run=run)
            fused = self.fuse(
                tokens,
                ids,
                text_size,
                second=at == 1,
                plan=plan,
                matchers=matchers,
                weighted=weighted,
                run=run,
            )
            pooled.append(fused.pooled)
        return self.heads.logits(torch.cat(pooled, dim=-1), task)

    def embed_image(
        self, patches: Tensor, grid: tuple[int, int], *, run: Operators = EAGER
    ) -> Tensor:
        """Patches (B, rows * columns, D) -> image tokens (B, I, D), through the image tower.

        Where ToMe reduces the tower, each token that comes out counts as one from there on.
        """
        out: Tensor = self.vision(patches, grid, run, self.config.vision_merged)
        return out

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
        """The text tower, then both streams through the steps; see `PairNetwork.fuse`."""
        if plan is None or matchers is None:
            plan, matchers = [], [None] * self.config.depth
        if text_size is None:
            text_size = torch.ones_like(ids, dtype=torch.float32)
        x = self.text_transform(self.text(ids, text_size, run)) + self.modality.weight[0]
        y = self.image_transform(image) + image_modality(self.modality, second)
        words, patches = Tokens.start(x, text_size), Tokens.start(y, image_size)
        at = 0
        for pair, matcher in zip(self.pairs, matchers, strict=True):
            if not weighted:
                words, patches = words.unweighted(), patches.unweighted()
            if matcher is None:
                words, patches = pair(words, patches, run)
                continue
            if not isinstance(matcher, PuMer):
                raise TypeError(f"METER's two streams are reduced by PuMer, not by {matcher}")
            counts, at = tuple(plan[at : at + 3]), at + 3
            words, patches = pair(words, patches, run, matcher, counts)
        if at != len(plan):
            raise ValueError(f"a plan of {at} counts is needed, not of {len(plan)}")
        seen = self.text_pooler(words.x[:, 0]), self.image_pooler(patches.x[:, 0])
        return Fused(torch.cat(seen, dim=-1).tanh(), words.trace, patches.trace)


def merging_tower(model: Meter, merged: int) -> Meter:
    """The same network, sharing its weights, with ToMe in each layer of its image tower.

    Args:
        merged: tokens that each layer removes, 0 or more.
    """
    other = copy.copy(model)
    fields = {**model.config.model_dump(), "vision_merged": merged}
    other.config = MeterConfig.model_validate(fields)
    return other
