"""What a network leaves to whoever runs it: attention that knows sizes, and reduction.

Eager PyTorch runs them as below; export runs the same networks with operators that emit nodes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenfold.models.reduction import slots as slotting
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer

Count = int | Tensor
"""A number of tokens: while a graph is traced an int64 tensor of one element, else an int."""


class Tokens(NamedTuple):
    """What flows from layer to layer.

    Attributes:
        x: (B, N, D) the tokens.
        size: (B, N) float32, patches that each stands for; 0 is no token.
        trace: (B, P) int64, the token that now stands for each original one, or -1.
        text: how many of the tokens, at the front, are text; the others are of the image.
    """

    x: Tensor
    size: Tensor
    trace: Tensor
    text: Count = 0

    @classmethod
    def start(cls, x: Tensor, size: Tensor | None = None, *, text: Count = 0) -> Tokens:
        """Each token stands for itself.

        Args:
            size: (B, N), 0 for padding; by default every token is one.
        """
        batch, count, _ = x.shape
        if size is None:
            size = torch.ones(batch, count, device=x.device, dtype=torch.float32)
        return cls(x, size, slotting.identity(batch, count, x.device), text)

    def unweighted(self) -> Tokens:
        """Every token counts as one, and no token still as none."""
        return self._replace(size=(self.size > 0).float())


class Operators(Protocol):
    """How a network attends and reduces."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        """`softmax(q k^T / sqrt(d) + log size) v` for each head (ToMe, equation 1).

        Args:
            q: (B, Q, heads * d); k, v: (B, N, heads * d).
            size: (B, N), or None to leave sizes out.

        Returns:
            (B, Q, heads * d).
        """
        ...

    def importance(
        self, q: Tensor, k: Tensor, size: Tensor, query_size: Tensor, queries: Count, heads: int
    ) -> Tensor:
        """What the first queries attend to: their mean attention, over heads too (PuMer, 3.1).

        Recomputed from q and k, for those queries alone: attention itself stays fused, and keeps
        no probabilities.

        Args:
            q: (B, Q, heads * d); k: (B, N, heads * d).
            size: (B, N), as `attend` counts the keys.
            query_size: (B, Q), how much each query counts in the mean.
            queries: how many of them, from the first, are asked.

        Returns:
            (B, N) float32, 0 to 1; 0 where no query counts.
        """
        ...

    def reduce(
        self,
        tokens: Tokens,
        keys: Tensor,
        heads: int,
        matcher: Matcher | PuMer,
        amount: Count | tuple[Count, ...],
        importance: Tensor | None = None,
    ) -> Tokens:
        """Remove tokens, those that the matcher picks.

        Args:
            keys: (B, N, heads * d), the metric once averaged over heads.
            amount: up to so many; PuMer wants (prune, merge, text).
            importance: (B, N), for PuMer.
        """
        ...


class Eager:
    """PyTorch, op by op: the reference for every other implementation."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        bias = None if size is None else size.log().to(q.dtype)[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, heads, N, d)
        return out.transpose(1, 2).flatten(2)  # (B, N, heads * d)

    def importance(
        self, q: Tensor, k: Tensor, size: Tensor, query_size: Tensor, queries: Count, heads: int
    ) -> Tensor:
        q, k = (t.float().unflatten(2, (heads, -1)) for t in (q[:, :queries], k))
        scores = torch.einsum("bqhd,bnhd->bhqn", q, k) * q.shape[-1] ** -0.5
        shares: Tensor = (scores + size.log()[:, None, None, :]).softmax(-1)
        weight = query_size[:, :queries]
        total = (shares.sum(1) * weight.unsqueeze(-1)).sum(1)
        return total / (heads * weight.sum(1, keepdim=True)).clamp_min(1e-30)

    def reduce(
        self,
        tokens: Tokens,
        keys: Tensor,
        heads: int,
        matcher: Matcher | PuMer,
        amount: Count | tuple[Count, ...],
        importance: Tensor | None = None,
    ) -> Tokens:
        x, size, trace, _ = tokens
        text = int(tokens.text)
        metric = keys.unflatten(2, (heads, -1)).mean(2)  # (B, N, d)
        if isinstance(matcher, PuMer):
            if importance is None or not isinstance(amount, tuple):
                raise TypeError("PuMer needs the importance of tokens and three counts")
            counts = [int(count) for count in amount]
            left, rest = matcher.left(text, x.shape[1] - text, counts)
            width = left + rest
            if width == x.shape[1]:
                return tokens
            slots = matcher(metric, size, importance, text, counts)
            text = left
        else:
            if isinstance(amount, tuple):
                raise TypeError(f"{type(matcher).__name__} takes one count")
            width = matcher.width(x.shape[1], int(amount))
            if width == x.shape[1]:
                return tokens
            slots = matcher(metric, size, int(amount))
        y, new_size = slotting.reduce(x, size, slots, width)
        return Tokens(y, new_size, slotting.compose(trace, slots), text)


EAGER = Eager()
