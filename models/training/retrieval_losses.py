"""Losses of the dual encoder for scenes: contrast, and probes of patches and vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold.bundle.schedule import plan_for
from tokenfold.models.networks.dual import DualEncoder
from tokenfold.models.networks.operators import Tokens
from tokenfold.models.reduction.tome import ToMe
from tokenfold.models.training.pair_data import GRID
from tokenfold.models.training.pair_losses import ATTRIBUTE_VALUES, normalise
from tokenfold.models.training.retrieval_data import FACTS, RetrievalBatch
from tokenfold.models.training.run import MixedPrecision, TrainingSettings

# Share of the unmasked steps that reduce the images.
REDUCED_SHARE = 0.6


class Losses(NamedTuple):
    """Losses of a batch.

    Attributes:
        contrast: contrastive loss, from texts to images and from images to texts.
        dense: loss of the probes.
        recall: share of the texts whose own image ranks first in the batch.
    """

    contrast: Tensor
    dense: Tensor
    recall: float


class RetrievalProbes(nn.Module):
    """Dense supervision: linear probes of patches and vectors, not part of the checkpoint."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.shown = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.LayerNorm(dim), nn.Linear(dim, sum(ATTRIBUTE_VALUES) + 2 * GRID)
                )
                for name in ("middle", "last")
            }
        )
        # One probe for both towers, so that each learns from the other.
        self.facts = nn.Linear(width, FACTS)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(
        self,
        middle: Tensor,
        last: Tensor,
        vectors: tuple[Tensor, Tensor],
        batch: RetrievalBatch,
        indexes: Tensor,
    ) -> Tensor:
        """Return the loss.

        Args:
            middle, last: patches (B, P, D) after half of the layers and after the last one.
            vectors: (B, width) each, of images and texts.
            indexes: (B, P), indexes of the patches in the image.
        """
        loss = torch.zeros(())
        for tokens, probe in ((middle, self.shown["middle"]), (last, self.shown["last"])):
            *attributes, rows, columns = (
                probe(tokens).float().split([*ATTRIBUTE_VALUES, GRID, GRID], dim=-1)
            )
            for index, logits in enumerate(attributes):
                shown = batch.shown[:, index].gather(1, indexes)
                loss = loss + F.cross_entropy(logits.flatten(0, 1), shown.flatten())
            loss = loss + 0.25 * F.cross_entropy(rows.flatten(0, 1), indexes.flatten() // GRID)
            loss = loss + 0.25 * F.cross_entropy(columns.flatten(0, 1), indexes.flatten() % GRID)
        for vector in vectors:
            logits = self.facts(self.scale * vector).float()
            loss = loss + 10.0 * F.binary_cross_entropy_with_logits(logits, batch.facts)
        return loss


def losses(
    model: DualEncoder,
    probes: RetrievalProbes,
    batch: RetrievalBatch,
    step: int,
    settings: TrainingSettings,
) -> Losses:
    """Return the losses of one step.

    Masked steps see the patches with things and some of the others. Later steps see whole images,
    and reduce most of them; reduced images have no dense loss.
    """
    tower, config = model.image, model.config.image
    random = np.random.default_rng((settings.seed, step, 1))
    reduction = 0.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = tower.embed(tower.patch_embed(normalise(batch.pixels)))
        if step < settings.masked:
            draw = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(step))
            order = (draw + (batch.shown[:, 0] > 0)).argsort(dim=1, descending=True)
            indexes = order[:, : settings.patches]
            x = x.gather(1, indexes.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        else:
            indexes = torch.arange(x.shape[1]).expand(len(x), -1)
            if random.random() < REDUCED_SHARE:
                reduction = float(random.uniform(*settings.reductions))
        outputs: list[Tensor] = []

        def record(_module: nn.Module, _inputs: object, output: Tokens) -> None:
            outputs.append(output.x)

        probed = (tower.blocks[config.depth // 2 - 1], tower.blocks[-1])
        hooks = [block.register_forward_hook(record) for block in probed]
        reduction_arguments: tuple[Any, Any] = (None, None)
        if reduction:
            reduction_arguments = (
                plan_for(config.workload("tome"), reduction),
                [ToMe() for _ in range(config.depth)],
            )
        out = tower.classify(x, *reduction_arguments, True, MixedPrecision())
        for hook in hooks:
            hook.remove()
        images = F.normalize(out.logits.float(), dim=-1)
        texts = model.embed_texts(batch.ids, batch.size, ops=MixedPrecision()).float()
        texts = F.normalize(texts, dim=-1)
        dense = torch.zeros(())
        if not reduction:
            middle, last = outputs
            dense = probes(middle, last, (images, texts), batch, indexes)
    logits = model.logit_scale.exp().clamp_max(100) * images @ texts.T
    targets = torch.arange(len(logits))
    contrast = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    return Losses(contrast, dense, float((logits.argmax(0) == targets).float().mean()))
