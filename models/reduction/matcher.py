"""Interface of matchers, and functions that matchers share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

# Scores below any cosine, so that every implementation ranks the same way without infinities: an
# absent token (size 0) is chosen last, a protected one never.
ABSENT = -2.0
PROTECTED = -3.0


class Matcher(Protocol):
    """Function that chooses the slots of one layer."""

    def width(self, tokens: int, r: int) -> int:
        """Return how many of `tokens` tokens are left when up to r are removed."""
        ...

    def __call__(self, metric: Tensor, size: Tensor, r: int) -> Tensor:
        """Choose slots that remove up to r tokens.

        Args:
            metric: (B, N, C), features whose cosine is the similarity of tokens.
            size: (B, N), 0 for an absent token.

        Returns:
            (B, N) int64.
        """
        ...


def unit(metric: Tensor) -> Tensor:
    """Scale rows to length 1, in float32 or wider; a zero row stays zero."""
    wide = metric.to(torch.promote_types(metric.dtype, torch.float32))
    length: Tensor = wide.norm(dim=-1, keepdim=True)
    return wide / length.clamp_min(1e-12)


def rank(scores: Tensor) -> Tensor:
    """Return the rank of each score, 0 for the highest; the lowest index wins ties."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1)
