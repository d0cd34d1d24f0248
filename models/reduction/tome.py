"""ToMe's bipartite soft matching, and its kth and random variants.

Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023), section 3 and appendix B. Written
from the formulae. Where the paper leaves ties open, the lowest index wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfold.bundle.workload import clamp
from tokenfold.models.reduction.matcher import ABSENT, PROTECTED, rank, unit
from tokenfold.models.reduction.slots import DROPPED, absent_last, identity


@dataclass(frozen=True)
class ToMe:
    """Even tokens are sources, odd ones destinations; the r sources with the best match merge.

    Output order: kept sources, then all destinations; with a distillation token the two protected
    tokens stay in front. Kept sources stay in ascending order when there is a class token, else
    they come by falling score, as in the published implementation. Absent tokens come last, so that
    padding at the end stays there and no later layer can tell how much of it there is.

    Attributes:
        class_token: token 0 is never merged.
        distill_token: token 1 is never merged either; needs class_token.
        padded: whether tokens may be absent. To find out is a question to the device, which has to
            be waited for: off, it is not asked, and a CUDA graph can record the matcher.
    """

    class_token: bool = True
    distill_token: bool = False
    padded: bool = True

    def __post_init__(self) -> None:
        if self.distill_token and not self.class_token:
            raise ValueError("a distillation token comes with a class token before it")

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
        place = rank(score)
        merged = place < r
        sources = score.shape[1]

        kept = (~merged).cumsum(1) - 1 if self.class_token else place - r
        after = torch.arange(tokens // 2, device=metric.device) + (sources - r)
        if self.distill_token:
            # [A0, B0, other A, other B]: token 0 keeps slot 0, the other sources move up one.
            kept = kept + (torch.arange(sources, device=metric.device) > 0)
            after = after.clone()
            after[0] = 1
        slots = torch.empty(batch, tokens, dtype=torch.int64, device=metric.device)
        slots[:, ::2] = torch.where(merged, after[partner], kept)
        slots[:, 1::2] = after
        return absent_last(slots, size, tokens - r) if self.padded else slots

    def _best(self, metric: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """For each source its best cosine and that destination's index: two (B, ceil(N/2))."""
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


@dataclass(frozen=True)
class KthToMe:
    """Every k-th token is a destination and all others merge; the tail of N mod k is dropped.

    The plan is not asked: k alone decides.
    """

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is 1 or more, not {self.k}")

    def width(self, tokens: int, r: int) -> int:
        return tokens // self.k if self.k > 1 else tokens

    def __call__(self, metric: Tensor, size: Tensor, r: int) -> Tensor:
        batch, tokens, _ = metric.shape
        groups = self.width(tokens, r)
        if groups == tokens:
            return identity(batch, tokens, metric.device)
        index = torch.arange(tokens, device=metric.device)
        is_destination = (index % self.k == self.k - 1) & (index < groups * self.k)
        is_source = (index % self.k != self.k - 1) & (index < groups * self.k)
        slots = torch.full((batch, tokens), DROPPED, dtype=torch.int64, device=metric.device)
        if groups == 0:
            return slots
        m = unit(metric)
        similarity = m[:, is_source] @ m[:, is_destination].transpose(1, 2)
        absent = (size[:, is_destination] == 0).unsqueeze(1)
        slots[:, is_source] = similarity.masked_fill(absent, ABSENT).argmax(dim=-1)
        slots[:, is_destination] = index[:groups]
        return slots


@dataclass(frozen=True)
class RandomToMe:
    """r tokens drawn at random merge into their best match among the others. Protects nothing."""

    generator: torch.Generator | None = None

    def width(self, tokens: int, r: int) -> int:
        return tokens - max(0, min(r, tokens - 1))

    def __call__(self, metric: Tensor, size: Tensor, r: int) -> Tensor:
        batch, tokens, _ = metric.shape
        r = tokens - self.width(tokens, r)
        if r == 0:
            return identity(batch, tokens, metric.device)
        draw = torch.rand(batch, tokens, generator=self.generator).to(metric.device)
        merged = rank(draw) < r
        m = unit(metric)
        similarity = m @ m.transpose(1, 2)  # (B, N, N)
        similarity = similarity.masked_fill((size == 0).unsqueeze(1), ABSENT)
        similarity = similarity.masked_fill(merged.unsqueeze(1), PROTECTED)
        kept = (~merged).cumsum(1) - 1
        return torch.where(merged, kept.gather(1, similarity.argmax(dim=-1)), kept)
