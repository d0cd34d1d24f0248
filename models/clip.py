"""CLIP's image tower, whose tokens another network takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold.models.blocks import Block
from tokenfold.models.operators import Operators, Tokens
from tokenfold.models.reduction.tome import ToMe

EPS = 1e-5


class ClipTower(nn.Module):
    """Class token and positions, a layer norm, blocks, a layer norm of every token."""

    def __init__(
        self, grid: tuple[int, int], dim: int, depth: int, heads: int, mlp_dim: int
    ) -> None:
        """Sizes.

        Args:
            grid: rows and columns of patches in the position embedding.
        """
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, dim))
        self.norm_pre = nn.LayerNorm(dim, EPS)
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_dim, activation="quick_gelu", eps=EPS) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(
        self, patches: Tensor, grid: tuple[int, int], run: Operators, merged: int = 0
    ) -> Tensor:
        """Tokens (B, I, D) of patches (B, rows * columns, D).

        Args:
            grid: rows and columns; positions are resized to another grid than their own.
            merged: tokens that ToMe removes in every block, with proportional attention.
        """
        prefix = self.cls_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([prefix, patches], dim=1) + self._positions(grid)
        tokens = Tokens.start(self.norm_pre(x))
        size = None  # before the first reduction all tokens count as 1
        for block in self.blocks:
            if merged:
                # A tensor, as a plan's counts are in a graph.
                count = torch.full((1,), merged, dtype=torch.int64)
                tokens = block(tokens, run, ToMe(class_token=True), count, size=size)
                size = tokens.size
            else:
                tokens = block(tokens, run)
        out: Tensor = self.norm(tokens.x)
        return out

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, I, D): those of the patches resized by bicubic interpolation."""
        if tuple(grid) == self.grid:
            return self.pos_embed
        spatial = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        spatial = F.interpolate(spatial, size=tuple(grid), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], spatial.flatten(2).transpose(1, 2)], dim=1)
