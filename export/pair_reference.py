"""A network with texts in PyTorch, called as the sessions of its graphs are."""

from __future__ import annotations

import torch

from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.preprocess import Pixels
from tokenfold.export.pair_graph import counts, pair_matchers
from tokenfold.export.verify import normalised
from tokenfold.models.checkpoints.checkpoint import PairCheckpoint
from tokenfold.runtime.pair import Float, PairInputs, PairOutput, PairRunner


class Reference(PairRunner):
    """The network of a checkpoint; see `tokenfold.runtime.pair.PairSession` for its methods."""

    def __init__(
        self, checkpoint: PairCheckpoint, workload: PairWorkload, *, weighted: bool
    ) -> None:
        """Args:
        workload: says by which method its layers reduce.
        weighted: whether tokens merge by size and attention counts sizes.
        """
        self._model = checkpoint.model
        self._preprocess = checkpoint.preprocess
        self._workload = workload
        self._matchers = pair_matchers(workload)
        self._weighted = weighted

    def embed(self, images: Pixels) -> Float:
        with torch.inference_mode():
            return self.embedded(normalised(images, self._preprocess)).numpy()

    def embedded(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, 3, H, W) -> image tokens (B, I, D)."""
        side = self._model.config.patch_size
        height, width = images.shape[2:]
        patches = self._model.patch_embed(images)
        return self._model.embed_image(patches, (height // side, width // side))

    def _fuse(self, inputs: PairInputs, slots: bool) -> PairOutput:
        plan, other = inputs.plan, inputs.other
        # PuMer's layers would ask which tokens matter even where none is to go.
        plain = self._workload.method == "pumer" and not any(plan)
        with torch.inference_mode():
            fused = self._model.fuse(
                torch.from_numpy(inputs.image_tokens),
                torch.from_numpy(inputs.input_ids),
                torch.from_numpy(inputs.text_size),
                second=other is not None,
                plan=None if plain else counts(self._workload, plan),
                matchers=self._matchers,
                weighted=self._weighted,
            )
            seen = fused.pooled
            if other is not None:
                seen = torch.cat([torch.from_numpy(other), seen], dim=-1)
            logits = None
            if inputs.has_logits:
                logits = self._model.heads.logits(seen, inputs.task).numpy()
        return PairOutput(
            logits,
            fused.pooled.numpy(),
            fused.text.numpy() if slots else None,
            fused.image.numpy() if slots else None,
        )
