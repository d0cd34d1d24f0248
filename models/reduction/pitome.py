"""PiToMe: tokens with many similar tokens (high energy) merge first, isolated ones last.

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

# Attraction is rounded to multiples of 1 / STEPS. Sums over up to 2,000 tokens are then exact in
# float32, in any order, so that equal energies are equal in every implementation.
STEPS = 4096.0


def margin(layer: int, depth: int) -> float:
    """Return the paper's margin for a layer: 0.9 at the first layer, falling towards 0."""
    return 0.9 - 0.9 * layer / depth


@dataclass(frozen=True)
class PiToMe:
    """Matcher that merges among the 2r tokens of highest energy.

    Of these tokens, those of even rank merge into the most similar one of odd rank.
    `energy_i = mean over j of ELU(cos(i, j) - margin)`, over the other present unprotected tokens.
    Tokens that are kept stay in order.

    Attributes:
        margin: cosine above which tokens attract and below which they repel, 0 to 0.9.
        protected: number of leading tokens that never merge.
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
        rank_of = rank(self._energy(similarity, size))
        is_source = (rank_of < 2 * r) & (rank_of % 2 == 0)
        is_destination = (rank_of < 2 * r) & (rank_of % 2 == 1)

        similarity = similarity.masked_fill((size == 0).unsqueeze(1), ABSENT)
        similarity = similarity.masked_fill(~is_destination.unsqueeze(1), PROTECTED)
        kept = (~is_source).cumsum(1) - 1
        return torch.where(is_source, kept.gather(1, similarity.argmax(dim=-1)), kept)

    def _energy(self, similarity: Tensor, size: Tensor) -> Tensor:
        """Return the energy (B, N): over -1 for tokens that may merge, else ABSENT or PROTECTED."""
        present = size > 0
        present[:, : self.protected] = False
        # Without a token's cosine with itself, which is 1 for all, its rounding cannot break ties.
        itself = torch.eye(size.shape[1], dtype=torch.bool, device=size.device)
        counted = present.unsqueeze(1) & ~itself
        attraction = (F.elu(similarity - self.margin) * STEPS).round() * counted
        energy = attraction.sum(-1) / (present.sum(-1, keepdim=True).clamp_min(1) * STEPS)
        energy = energy.masked_fill(size == 0, ABSENT)
        leading = torch.arange(size.shape[1], device=size.device) < self.protected
        return energy.masked_fill(leading, PROTECTED)
