"""Attention for training in bfloat16 on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenfold.models.operators import Eager


class MixedPrecision(Eager):
    """Keeps attention in float32 under autocast: its bfloat16 backward is four times slower."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().attend(q.float(), k.float(), v.float(), size, heads)
