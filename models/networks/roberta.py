"""RoBERTa's encoder, and the post-norm layers that BERT, RoBERTa and METER are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenfold.models.networks.blocks import Mlp
from tokenfold.models.networks.operators import Operators

EPS = 1e-5


class PostNormAttention(nn.Module):
    """`norm(x + attention(x, y))`, where y is x itself or another stream."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps)

    def forward(
        self, x: Tensor, y: Tensor, y_size: Tensor, ops: Operators
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from x to y.

        Args:
            x: (B, Q, D), source of the queries.
            y: (B, N, D), source of the keys and values.
            y_size: (B, N), size of each token of y in attention.

        Returns:
            The output (B, Q, D), the queries (B, Q, D) and the keys (B, N, D).
        """
        q = self.q(x)
        k, v = self.kv(y).chunk(2, dim=-1)
        return self.norm(x + self.proj(ops.attend(q, k, v, y_size, self.heads))), q, k


class PostNormMlp(nn.Module):
    """`norm(x + mlp(x))`."""

    def __init__(self, dim: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.mlp = Mlp(dim, hidden, "gelu")
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.mlp(x))
        return out


class PostNormBlock(nn.Module):
    """Self-attention followed by an MLP."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attn = PostNormAttention(dim, heads, eps)
        self.mlp = PostNormMlp(dim, hidden, eps)

    def forward(self, x: Tensor, size: Tensor, ops: Operators) -> Tensor:
        """Map (B, N, D) to (B, N, D); attention ignores tokens whose size (B, N) is 0."""
        out: Tensor = self.mlp(self.attn(x, x, size, ops)[0])
        return out


class RobertaEncoder(nn.Module):
    """Word and position embeddings, then post-norm blocks.

    Token n of a text has position n, whatever padding follows. RoBERTa numbers positions from 2;
    row 0 here is its position 2. Its only segment embedding is part of the positions.
    """

    def __init__(
        self, vocabulary: int, max_tokens: int, dim: int, depth: int, heads: int, mlp_dim: int
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.zeros(1, max_tokens, dim))
        self.norm = nn.LayerNorm(dim, EPS)
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads, mlp_dim, EPS) for _ in range(depth))

    def forward(self, ids: Tensor, size: Tensor, ops: Operators) -> Tensor:
        """Map ids (B, T) int64 to tokens (B, T, D).

        Args:
            size: (B, T), 1 for a token and 0 for padding, which is at the end.
        """
        x: Tensor = self.norm(self.words(ids) + self.positions[:, : ids.shape[1]])
        for block in self.blocks:
            x = block(x, size, ops)
        return x
