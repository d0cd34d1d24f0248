"""PiToMe: tokens with many look-alikes (high energy) merge first, isolated ones are protected.

Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging" (NeurIPS 2024),
section 3. Written from the formulae; the lowest index wins ties.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenfold.bundle.workload import clamp
from tokenfold.models.reduction.matcher import ABSENT, PROTECTED, rank, unit
from tokenfold.models.reduction.slots import identity

# Attraction counts in whole steps of 1 / STEPS: float32 then adds up to 2,000 tokens exactly, in
# any order, so that equal energies are equal in every implementation.
STEPS = 4096.0


def margin(layer: int, depth: int) -> float:
    """The paper's margin for a layer: 0.9 at the first, falling towards 0."""
    return 0.9 - 0.9 * layer / depth


@dataclass(frozen=True)
class PiToMe:
    """The 2r tokens of highest energy pair up: even places merge into their best odd place.

    `energy_i = mean over j of ELU(cos(i, j) - margin)`, over the other present unprotected tokens.
    All tokens that stay keep their order.

    Attributes:
        margin: cosines above it attract, below it repel, 0 to 0.9.
        protected: leading tokens that take no part.
    """

    margin: float
    protected: int = 1

    def width(self, tokens: int, r: int) -> int:
        return tokens - clamp(r, tokens, self.protected)

    def __call__(self, metric: Tensor, size: Tensor, r: int) -> Tensor:
        batch, tokens, _ = metric.shape
        r = clamp(r, tokens, self.protected)
        if r == 0:
            return identity(batch, tokens, metric.device)
        m = unit(metric)
        similarity = m @ m.transpose(1, 2)  # (B, N, N)
        place = rank(self._energy(similarity, size))
        is_source = (place < 2 * r) & (place % 2 == 0)
        is_destination = (place < 2 * r) & (place % 2 == 1)

        similarity = similarity.masked_fill((size == 0).unsqueeze(1), ABSENT)
        similarity = similarity.masked_fill(~is_destination.unsqueeze(1), PROTECTED)
        kept = (~is_source).cumsum(1) - 1
        return torch.where(is_source, kept.gather(1, similarity.argmax(dim=-1)), kept)

    def _energy(self, similarity: Tensor, size: Tensor) -> Tensor:
        """(B, N): above -1 for tokens that may merge; ABSENT and PROTECTED for the others."""
        present = size > 0
        present[:, : self.protected] = False
        # A token's cosine with itself is the same for all; left out, rounding cannot break ties.
        itself = torch.eye(size.shape[1], dtype=torch.bool, device=size.device)
        counted = present.unsqueeze(1) & ~itself
        attraction = (F.elu(similarity - self.margin) * STEPS).round() * counted
        energy = attraction.sum(-1) / (present.sum(-1, keepdim=True).clamp_min(1) * STEPS)
        energy = energy.masked_fill(size == 0, ABSENT)
        leading = torch.arange(size.shape[1], device=size.device) < self.protected
        return energy.masked_fill(leading, PROTECTED)
