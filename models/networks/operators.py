"""Operators of a network with several implementations: attention with sizes, and reduction.

Eager PyTorch runs `EagerOperators`; export runs the same networks with operators that emit nodes.
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
    """Tokens between two layers.

    Attributes:
        x: (B, N, D).
        size: (B, N) float32, number of patches that each token stands for; 0 marks padding.
        trace: (B, P) int64, index of the token that stands for each input token, -1 if dropped.
        text: number of leading tokens that are text; the others are image tokens.
    """

    x: Tensor
    size: Tensor
    trace: Tensor
    text: Count = 0

    @classmethod
    def start(cls, x: Tensor, size: Tensor | None = None, *, text: Count = 0) -> Tokens:
        """Return the input tokens of a network, each of which stands for itself.

        Args:
            size: (B, N), 0 for padding; None gives every token size 1.
        """
        batch, count, _ = x.shape
        if size is None:
            size = torch.ones(batch, count, device=x.device, dtype=torch.float32)
        return cls(x, size, slotting.identity(batch, count, x.device), text)

    def unweighted(self) -> Tokens:
        """Return the same tokens with size 1, and padding with size 0."""
        return self._replace(size=(self.size > 0).float())


class Operators(Protocol):
    """Implementation of attention and reduction."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        """Compute `softmax(q k^T / sqrt(d) + log size) v` for each head (ToMe, equation 1).

        Args:
            q: (B, Q, heads * d).
            k, v: (B, N, heads * d).
            size: (B, N), or None to leave sizes out.

        Returns:
            (B, Q, heads * d).
        """
        ...

    def importance(
        self, q: Tensor, k: Tensor, size: Tensor, query_size: Tensor, queries: Count, heads: int
    ) -> Tensor:
        """Return the mean attention of the first queries to each key, over heads (PuMer, 3.1).

        It is recomputed from q and k for those queries alone, because fused attention keeps no
        probabilities.

        Args:
            q: (B, Q, heads * d).
            k: (B, N, heads * d).
            size: (B, N), size of each key in attention.
            query_size: (B, Q), weight of each query in the mean.
            queries: number of leading queries that the mean covers.

        Returns:
            (B, N) float32, 0 to 1; 0 if no query has a weight.
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
        """Remove the tokens that the matcher selects.

        Args:
            keys: (B, N, heads * d); their mean over heads is the metric.
            amount: maximum number of tokens to remove; for PuMer (prune, merge, text).
            importance: (B, N), required by PuMer.
        """
        ...


class EagerOperators:
    """PyTorch implementation, the reference for every other one."""

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
                raise TypeError("PuMer needs the importance of the tokens and three counts")
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


EAGER = EagerOperators()
