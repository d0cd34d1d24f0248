"""What a matcher is, and the pieces that matchers share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

# Scores below any cosine, so that every implementation ranks the same way without infinities:
# an absent token (size 0) is the last to be chosen, a protected one never is.
ABSENT = -2.0
PROTECTED = -3.0


class Matcher(Protocol):
    """Chooses the slots of one layer."""

    def width(self, tokens: int, r: int) -> int:
        """Tokens that are left of `tokens` when asked to remove r."""
        ...

    def __call__(self, metric: Tensor, size: Tensor, r: int) -> Tensor:
        """Slots (B, N) int64 from metric (B, N, C) and size (B, N), removing up to r tokens."""
        ...


def unit(metric: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 or wider; a zero row stays zero."""
    wide = metric.to(torch.promote_types(metric.dtype, torch.float32))
    length: Tensor = wide.norm(dim=-1, keepdim=True)
    return wide / length.clamp_min(1e-12)


def rank(scores: Tensor) -> Tensor:
    """Place of each score in falling order, 0 is the highest; ties go to the lowest index."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1)
