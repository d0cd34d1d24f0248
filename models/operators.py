"""What a network leaves to whoever runs it: attention that knows sizes, and reduction.

Eager PyTorch runs them as below; export runs the same networks with operators that emit nodes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from models.reduction import slots as slotting
from models.reduction.matcher import Matcher


class Tokens(NamedTuple):
    """What flows from layer to layer.

    Attributes:
        x: (B, N, D) the tokens.
        size: (B, N) float32, patches that each stands for; 0 is no token.
        trace: (B, P) int64, the token that now stands for each original one, or -1.
    """

    x: Tensor
    size: Tensor
    trace: Tensor

    @classmethod
    def start(cls, x: Tensor) -> Tokens:
        """Each token stands for itself."""
        batch, count, _ = x.shape
        size = torch.ones(batch, count, device=x.device, dtype=torch.float32)
        return cls(x, size, slotting.identity(batch, count, x.device))


class Operators(Protocol):
    """How a network attends and reduces."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        """`softmax(q k^T / sqrt(d) + log size) v` for each head (ToMe, equation 1).

        Args:
            q, k, v: (B, N, heads * d).
            size: (B, N), or None to leave sizes out.

        Returns:
            (B, N, heads * d).
        """
        ...

    def reduce(self, tokens: Tokens, keys: Tensor, heads: int, matcher: Matcher, r: int) -> Tokens:
        """Remove up to r tokens, those that the matcher picks.

        Args:
            keys: (B, N, heads * d), the metric once averaged over heads.
        """
        ...


class Eager:
    """PyTorch, op by op: the reference for every other implementation."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        bias = None if size is None else size.log().to(q.dtype)[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, heads, N, d)
        return out.transpose(1, 2).flatten(2)  # (B, N, heads * d)

    def reduce(self, tokens: Tokens, keys: Tensor, heads: int, matcher: Matcher, r: int) -> Tokens:
        x, size, trace = tokens
        width = matcher.width(x.shape[1], r)
        if width == x.shape[1]:
            return tokens
        metric = keys.unflatten(2, (heads, -1)).mean(2)  # (B, N, d)
        slots = matcher(metric, size, r)
        y, new_size = slotting.reduce(x, size, slots, width)
        return Tokens(y, new_size, slotting.compose(trace, slots))


EAGER = Eager()
