"""Stems: the layers that turn an image into patch embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

Stem = tuple[tuple[int, int], ...]
"""(channels, stride) of each 3x3 convolution (Xiao et al. 2021); empty for plain patches."""


class PatchEmbed(nn.Module):
    """Linear projection of non-overlapping patches."""

    def __init__(self, patch_size: int, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.proj(image)
        return out.flatten(2).transpose(1, 2)  # (B, patches, D)


class ConvStem(nn.Module):
    """3x3 convolutions that reduce each patch to one position, then a 1x1 one to the width."""

    def __init__(self, stem: Sequence[tuple[int, int]], dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out, stride in stem:
            layers += [
                nn.Conv2d(channels, out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        layers.append(nn.Conv2d(channels, dim, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.layers(image)
        return out.flatten(2).transpose(1, 2)  # (B, patches, D)


def check_strides(stem: Stem, patch_size: int) -> None:
    """Check that the strides of a stem multiply to the patch size; raise ValueError otherwise."""
    strides = math.prod(stride for _, stride in stem)
    if stem and strides != patch_size:
        raise ValueError(
            f"the strides of the stem multiply to {strides}, not to the patch size {patch_size}"
        )


def flops_per_patch(stem: Stem, patch_size: int, dim: int) -> int:
    """Return the multiply-accumulates of a stem for one patch."""
    if not stem:
        return 3 * patch_size**2 * dim
    total, channels, area = 0, 3, patch_size**2
    for out, stride in stem:
        area //= stride**2
        total += area * 9 * channels * out
        channels = out
    return total + channels * dim
