"""Transformer layers whose norms stand behind the residuals, as in BERT and RoBERTa."""

from __future__ import annotations

from torch import Tensor, nn

from tokenfold.models.blocks import Mlp
from tokenfold.models.operators import Operators


class PostAttention(nn.Module):
    """`norm(x + attention(x, y))`, y being x itself or another stream."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps)

    def forward(
        self, x: Tensor, y: Tensor, y_size: Tensor, run: Operators
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of y.

        Args:
            x: (B, Q, D).
            y: (B, N, D).
            y_size: (B, N), what attention counts a token of y as.

        Returns:
            The output (B, Q, D), the queries (B, Q, D) and the keys (B, N, D).
        """
        q = self.q(x)
        k, v = self.kv(y).chunk(2, dim=-1)
        return self.norm(x + self.proj(run.attend(q, k, v, y_size, self.heads))), q, k


class PostMlp(nn.Module):
    """`norm(x + mlp(x))`."""

    def __init__(self, dim: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.mlp = Mlp(dim, hidden, "gelu")
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.mlp(x))
        return out


class PostBlock(nn.Module):
    """Self-attention and MLP."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attn = PostAttention(dim, heads, eps)
        self.mlp = PostMlp(dim, hidden, eps)

    def forward(self, x: Tensor, size: Tensor, run: Operators) -> Tensor:
        """(B, N, D) -> (B, N, D); tokens of size (B, N) 0 are not attended to."""
        out: Tensor = self.mlp(self.attn(x, x, size, run)[0])
        return out
