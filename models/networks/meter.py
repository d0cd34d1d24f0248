"""METER: an image tower and a text tower, then cross-modal layers.

Dou et al., "An Empirical Study of Training End-to-End Vision-and-Language Transformers" (CVPR
2022): CLIP's ViT and RoBERTa. The published code runs the text layer and the image layer of a pair
in parallel; PuMer's code runs the text layer first. A checkpoint has to run in the form that it was
trained in.
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import Tensor, nn

from tokenfold.bundle.meter_workload import MeterWorkload, even_widths
from tokenfold.bundle.pair_workload import PairMethod, Rates
from tokenfold.models.networks.clip import ClipTower
from tokenfold.models.networks.cross import CrossPair, Form
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
from tokenfold.models.networks.roberta import RobertaEncoder
from tokenfold.models.networks.stem import PatchEmbed, flops_per_patch
from tokenfold.models.reduction.pumer import PuMer


class MeterConfig(PairConfig):
    """Configuration of a METER; see `PairConfig` for the fields that it inherits.

    Each of the `depth` layers is a pair of a text layer and an image layer.

    Attributes:
        form: text that the image layers attend to, see `cross.Form`.
        protect_class: whether PuMer keeps the image's class token, which gives half of the pooled
            output. PuMer as published may drop it.
        vision_depth, text_depth: layers of the towers.
        cross_eps: epsilon of the layer norms in the cross-modal layers.
        vision_merged: tokens that ToMe removes in each layer of the image tower; 0 with PuMer,
            which does not reduce the tower.
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
        """Return the description of this network that the schedule needs, for a text with an image.

        Args:
            method: `none` or `pumer`; ToMe reduces the image tower, by `vision_merged`.
            text: tokens of the text; None for the maximum.
            layers, rates: layers and shares of PuMer; None for those of the configuration.

        Raises:
            ValueError: `method` is neither `none` nor `pumer`.
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
            stem=flops_per_patch((), self.patch_size, self.dim),
            head=2 * self.dim * self.dim
            + max(head.flops(images(task) * 2 * self.dim) for task, head in self.heads.items()),
        )


class Meter(PairNetwork):
    """A METER that reduces its tokens by a plan."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__()
        self.config: MeterConfig = config
        d, heads, hidden = config.dim, config.heads_per_layer, config.mlp_dim
        self.patch_embed: nn.Module = PatchEmbed(config.patch_size, d, bias=False)
        self.vision = ClipTower(config.grid, d, config.vision_depth, heads, hidden)
        self.text = RobertaEncoder(
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

    def embed_image(
        self, patches: Tensor, grid: tuple[int, int], *, ops: Operators = EAGER
    ) -> Tensor:
        """Run the image tower.

        If ToMe reduces the tower, each of its output tokens counts as one from then on.
        """
        out: Tensor = self.vision(patches, grid, ops, self.config.vision_merged)
        return out

    def _fuse(self, inputs: FusionInputs, ops: Operators) -> Fused:
        x = self.text_transform(self.text(inputs.ids, inputs.text_size, ops))
        x = x + self.modality.weight[0]
        y = self.image_transform(inputs.image) + image_modality(self.modality, inputs.second)
        words, patches = Tokens.start(x, inputs.text_size), Tokens.start(y, inputs.image_size)
        plan, matchers, weighted = inputs.reduction
        used = 0
        for pair, matcher in zip(self.pairs, matchers, strict=True):
            if not weighted:
                words, patches = words.unweighted(), patches.unweighted()
            if matcher is None:
                words, patches = pair(words, patches, ops)
                continue
            if not isinstance(matcher, PuMer):
                raise TypeError(f"only PuMer reduces the two streams of METER, not {matcher}")
            counts, used = tuple(plan[used : used + 3]), used + 3
            words, patches = pair(words, patches, ops, matcher, counts)
        pooled = self.text_pooler(words.x[:, 0]), self.image_pooler(patches.x[:, 0])
        return Fused(torch.cat(pooled, dim=-1).tanh(), words.trace, patches.trace)


def merging_tower(model: Meter, merged: int) -> Meter:
    """Return a network with the same weights and ToMe in each layer of its image tower.

    Args:
        merged: tokens that each layer of the tower removes, 0 or more.
    """
    merging = copy.copy(model)
    fields = {**model.config.model_dump(), "vision_merged": merged}
    merging.config = MeterConfig.model_validate(fields)
    return merging
