"""RoBERTa's encoder: words to contextual tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenfold.models.operators import Operators
from tokenfold.models.post_norm import PostBlock

EPS = 1e-5


class TextTower(nn.Module):
    """Words and their positions, then layers whose norms stand behind the residuals.

    The n-th token of a text has the n-th position, whatever padding follows. RoBERTa numbers them
    from 2; here that is row 0. Its only segment embedding is part of the positions.
    """

    def __init__(
        self, vocabulary: int, most_tokens: int, dim: int, depth: int, heads: int, mlp_dim: int
    ) -> None:
        """Sizes.

        Args:
            most_tokens: positions.
        """
        super().__init__()
        self.words = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.zeros(1, most_tokens, dim))
        self.norm = nn.LayerNorm(dim, EPS)
        self.blocks = nn.ModuleList(PostBlock(dim, heads, mlp_dim, EPS) for _ in range(depth))

    def forward(self, ids: Tensor, size: Tensor, run: Operators) -> Tensor:
        """(B, T) int64, with padding of size (B, T) 0 at the end -> (B, T, D)."""
        x: Tensor = self.norm(self.words(ids) + self.positions[:, : ids.shape[1]])
        for block in self.blocks:
            x = block(x, size, run)
        return x
