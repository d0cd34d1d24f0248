"""Attention pooling: a learned query attends to all tokens (Zhai et al. 2022, SigLIP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenfold.models.networks.blocks import Activation, Mlp
from tokenfold.models.networks.operators import Operators


class AttentionPool(nn.Module):
    """Attention from a learned probe to the tokens, then `x + mlp(norm(x))`."""

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, *, activation: Activation, eps: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, mlp_dim, activation)

    def forward(self, x: Tensor, size: Tensor | None, ops: Operators) -> Tensor:
        """Pool tokens (B, N, D) into (B, D).

        Args:
            size: (B, N), size of each token in attention: a token that stands for four patches
                draws four times the attention, as those patches would. None counts all as 1.
        """
        q = self.q(self.probe).expand(x.shape[0], -1, -1)
        k, v = self.kv(x).chunk(2, dim=-1)
        pooled = self.proj(ops.attend(q, k, v, size, self.heads))  # (B, 1, D)
        out: Tensor = pooled + self.mlp(self.norm(pooled))
        return out[:, 0]


def per_token_flops(dim: int) -> int:
    """Return the multiply-accumulates per token: its key and value, and two dot products."""
    return 2 * dim * dim + 2 * dim


def fixed_flops(dim: int, mlp_dim: int) -> int:
    """Return the multiply-accumulates per image: query, projection and MLP."""
    return 2 * dim * dim + 2 * dim * mlp_dim
