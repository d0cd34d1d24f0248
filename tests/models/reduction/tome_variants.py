"""Variants of ToMe's matching from its appendix: every k-th token, and random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfold.models.reduction.matcher import ABSENT, PROTECTED, rank, unit
from tokenfold.models.reduction.slots import DROPPED, identity


@dataclass(frozen=True)
class KthToMe:
    """Matcher with every k-th token as a destination; all others merge, and N mod k are dropped.

    The number of removed tokens depends only on k, not on the plan.
    """

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be 1 or more")

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
    """Matcher that merges r random tokens into the most similar of the others; protects nothing."""

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
