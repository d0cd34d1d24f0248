"""CLIP's image tower as a part of another network, which takes all of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold.models.networks.blocks import Block, BlockVariant
from tokenfold.models.networks.operators import Operators, Tokens
from tokenfold.models.reduction.tome import ToMe

EPS = 1e-5


class ClipTower(nn.Module):
    """Class token and positions, a layer norm, blocks, and a layer norm of every token."""

    def __init__(
        self, grid: tuple[int, int], dim: int, depth: int, heads: int, mlp_dim: int
    ) -> None:
        """Create the layers.

        Args:
            grid: rows and columns of patches in the position embedding.
        """
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, dim))
        self.norm_pre = nn.LayerNorm(dim, EPS)
        variant = BlockVariant(activation="quick_gelu", eps=EPS)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_dim, variant) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(
        self, patches: Tensor, grid: tuple[int, int], ops: Operators, merged: int = 0
    ) -> Tensor:
        """Map patches (B, rows * columns, D) to tokens (B, I, D).

        Args:
            grid: rows and columns; the position embedding is resized if its own grid differs.
            merged: tokens that ToMe removes in every block, with proportional attention.
        """
        prefix = self.cls_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([prefix, patches], dim=1) + self._positions(grid)
        tokens = Tokens.start(self.norm_pre(x))
        size = None  # before the first reduction all tokens count as 1
        for block in self.blocks:
            if merged:
                # A tensor, like the counts of a plan in a graph.
                count = torch.full((1,), merged, dtype=torch.int64)
                tokens = block(tokens, ops, ToMe(class_token=True), count, size=size)
                size = tokens.size
            else:
                tokens = block(tokens, ops)
        out: Tensor = self.norm(tokens.x)
        return out

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the position embedding (1, I, D), resized to a grid by bicubic interpolation."""
        if tuple(grid) == self.grid:
            return self.pos_embed
        spatial = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        spatial = F.interpolate(spatial, size=tuple(grid), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], spatial.flatten(2).transpose(1, 2)], dim=1)
