"""ToMe's bipartite soft matching.

Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023), section 3 and appendix B. Written
from the formulae. The paper leaves ties open; here the lowest index wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfold.bundle.workload import clamp
from tokenfold.models.reduction.matcher import ABSENT, PROTECTED, rank, unit
from tokenfold.models.reduction.slots import absent_last, identity


@dataclass(frozen=True)
class ToMe:
    """Matcher with even tokens as sources and odd ones as destinations; the r best sources merge.

    Output order: kept sources, then all destinations; with a distillation token the two protected
    tokens stay in front. With a class token, kept sources stay in ascending order; otherwise they
    are sorted by falling score, as in the published implementation. Absent tokens come last, so
    that padding stays at the end and later layers do not depend on its amount.

    Attributes:
        class_token: whether token 0 is protected from merging.
        distill_token: whether token 1 is protected too; needs class_token.
        padded: whether tokens may be absent. Checking for absent tokens waits for the device, which
            a CUDA graph cannot record; False skips the check.
    """

    class_token: bool = True
    distill_token: bool = False
    padded: bool = True

    def __post_init__(self) -> None:
        if self.distill_token and not self.class_token:
            raise ValueError("a distillation token needs a class token before it")

    @property
    def protected(self) -> int:
        return int(self.class_token) + int(self.distill_token)

    def width(self, tokens: int, r: int) -> int:
        return tokens - clamp(r, tokens, self.protected)

    def __call__(self, metric: Tensor, size: Tensor, r: int) -> Tensor:
        batch, tokens, _ = metric.shape
        r = clamp(r, tokens, self.protected)
        if r == 0:
            return identity(batch, tokens, metric.device)
        score, partner = self._best(metric, size)
        position = rank(score)
        merged = position < r
        sources = score.shape[1]

        kept = (~merged).cumsum(1) - 1 if self.class_token else position - r
        after = torch.arange(tokens // 2, device=metric.device) + (sources - r)
        if self.distill_token:
            # [A0, B0, other A, other B]: token 0 keeps slot 0, the other sources move up by one.
            kept = kept + (torch.arange(sources, device=metric.device) > 0)
            after = after.clone()
            after[0] = 1
        slots = torch.empty(batch, tokens, dtype=torch.int64, device=metric.device)
        slots[:, ::2] = torch.where(merged, after[partner], kept)
        slots[:, 1::2] = after
        return absent_last(slots, size, tokens - r) if self.padded else slots

    def _best(self, metric: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Return each source's best cosine and its destination's index, (B, ceil(N / 2)) each."""
        m = unit(metric)
        similarity = m[:, ::2] @ m[:, 1::2].transpose(1, 2)  # (B, sources, destinations)
        similarity = similarity.masked_fill((size[:, 1::2] == 0).unsqueeze(1), ABSENT)
        if self.distill_token:
            similarity[:, :, 0] = PROTECTED
        score, partner = similarity.max(dim=-1)
        score = score.masked_fill(size[:, ::2] == 0, ABSENT)
        if self.class_token:
            score[:, 0] = PROTECTED
        return score, partner
