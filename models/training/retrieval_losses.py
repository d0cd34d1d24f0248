"""What the dual encoder of the world of scenes is trained on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold.bundle.schedule import plan_for
from tokenfold.models.dual import DualEncoder
from tokenfold.models.operators import Tokens
from tokenfold.models.reduction.tome import ToMe
from tokenfold.models.training.mixed_precision import MixedPrecision
from tokenfold.models.training.retrieval_data import FACTS, Batch
from tokenfold.models.training.run import Settings
from tokenfold.models.training.scenes_data import GRID
from tokenfold.models.training.scenes_losses import KINDS, normalised

# Of the steps that see whole images, those that see them reduced.
REDUCED = 0.6


class Losses(NamedTuple):
    """Of a batch.

    Attributes:
        contrast: of telling the texts' images apart, and the images' texts.
        dense: the probes'.
        found: share of the texts whose image comes first in the batch.
    """

    contrast: Tensor
    dense: Tensor
    found: float


class Probes(nn.Module):
    """Dense supervision: linear readings of patches and vectors, left out of the checkpoint."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.shown = nn.ModuleDict(
            {
                name: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, sum(KINDS) + 2 * GRID))
                for name in ("middle", "last")
            }
        )
        # One reading for both towers: what it learns of one, the other can use.
        self.facts = nn.Linear(width, FACTS)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(
        self,
        middle: Tensor,
        last: Tensor,
        vectors: tuple[Tensor, Tensor],
        batch: Batch,
        chosen: Tensor,
    ) -> Tensor:
        """The loss.

        Args:
            middle, last: patches (B, P, D) halfway and behind the last layer.
            vectors: (B, width) of images and texts.
            chosen: (B, P) indexes of the patches.
        """
        loss = torch.zeros(())
        for tokens, probe in ((middle, self.shown["middle"]), (last, self.shown["last"])):
            *kinds, rows, columns = probe(tokens).float().split([*KINDS, GRID, GRID], dim=-1)
            for at, kind in enumerate(kinds):
                wanted = batch.shown[:, at].gather(1, chosen)
                loss = loss + F.cross_entropy(kind.flatten(0, 1), wanted.flatten())
            loss = loss + 0.25 * F.cross_entropy(rows.flatten(0, 1), chosen.flatten() // GRID)
            loss = loss + 0.25 * F.cross_entropy(columns.flatten(0, 1), chosen.flatten() % GRID)
        for vector in vectors:
            read = self.facts(self.scale * vector).float()
            loss = loss + 10.0 * F.binary_cross_entropy_with_logits(read, batch.facts)
        return loss


def losses(
    model: DualEncoder, probes: Probes, batch: Batch, step: int, settings: Settings
) -> Losses:
    """Of one step: while masked, of the patches with things and some others; then of whole images,
    most of them reduced, whose patches are asked for nothing.
    """
    tower, config = model.image, model.config.image
    random = np.random.default_rng((settings.seed, step, 1))
    reduction = 0.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = tower.embed(tower.patch_embed(normalised(batch.pixels)))
        if step < settings.masked:
            draw = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(step))
            order = (draw + (batch.shown[:, 0] > 0)).argsort(dim=1, descending=True)
            chosen = order[:, : settings.patches]
            x = x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, x.shape[2]))
        else:
            chosen = torch.arange(x.shape[1]).expand(len(x), -1)
            if random.random() < REDUCED:
                reduction = float(random.uniform(*settings.reductions))
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tokens) -> None:
            seen.append(output.x)

        asked = (tower.blocks[config.depth // 2 - 1], tower.blocks[-1])
        hooks = [block.register_forward_hook(keep) for block in asked]
        reducing: tuple[Any, Any] = (None, None)
        if reduction:
            reducing = (
                plan_for(config.workload("tome"), reduction),
                [ToMe() for _ in range(config.depth)],
            )
        out = tower.classify(x, *reducing, True, MixedPrecision())
        for hook in hooks:
            hook.remove()
        images = F.normalize(out.logits.float(), dim=-1)
        texts = model.embed_texts(batch.ids, batch.size, run=MixedPrecision()).float()
        texts = F.normalize(texts, dim=-1)
        dense = torch.zeros(())
        if not reduction:
            middle, last = seen
            dense = probes(middle, last, (images, texts), batch, chosen)
    logits = model.logit_scale.exp().clamp_max(100) * images @ texts.T
    right = torch.arange(len(logits))
    contrast = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    return Losses(contrast, dense, float((logits.argmax(0) == right).float().mean()))
