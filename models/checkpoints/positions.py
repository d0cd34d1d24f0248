"""Position embeddings for another number of patches than they were trained for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tokenfold.models.checkpoints.checkpoint import CheckpointError


def resize(positions: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Bicubic, from a square grid, as `transformers` does it (DINOv2's own rule).

    Args:
        positions: (1, prefix + patches, D); the prefix stays as it is.
        grid: rows and columns wanted.

    Returns:
        (1, prefix + rows * columns, D) of the same type.

    Raises:
        CheckpointError: the patches form no square, so their grid is not known.
    """
    patches = positions.shape[1] - prefix
    side = math.isqrt(max(patches, 0))
    if side == 0 or side * side != patches:
        raise CheckpointError(
            f"{patches} position embeddings form no square grid and cannot be resized to "
            f"{grid[0]} x {grid[1]}"
        )
    image = positions[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    resized = nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    moved = resized.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :prefix], moved], dim=1)
