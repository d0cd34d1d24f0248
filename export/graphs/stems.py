"""Stems of the graphs: normalisation of raw pixels and patch embedding."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.networks.stem import PatchEmbed


def stem(embed: nn.Module, preprocess: Preprocess, dtype: torch.dtype) -> nn.Module:
    """Return a module from images (B, H, W, 3) uint8 to patches (B, rows * columns, D).

    Args:
        embed: the network's patch embedding, for normalised images.
        dtype: type of weights and patches.
    """
    if isinstance(embed, PatchEmbed):
        return PatchProduct(embed, preprocess, dtype)
    return NormalisedStem(copy.deepcopy(embed).to(dtype), preprocess, dtype)


class PatchProduct(nn.Module):
    """Patch embedding of raw pixels as one matrix product, with normalisation in its weights.

    Transposing bytes before one product is faster than a convolution after four passes over floats.
    """

    def __init__(self, embed: PatchEmbed, preprocess: Preprocess, dtype: torch.dtype) -> None:
        super().__init__()
        kernel = embed.proj.weight.detach().double()  # (D, 3, p, p)
        mean, std = _columns(preprocess)
        weight = kernel / std.double()
        bias = -(weight * mean.double()).sum((1, 2, 3))
        if embed.proj.bias is not None:
            bias = bias + embed.proj.bias.detach().double()
        # Weights divided by 255 would be subnormal in float16, so the pixels are scaled instead.
        self.scale = 1 / 255 if dtype == torch.float16 else None
        if self.scale is None:
            weight = weight / 255
        dim, _, self.side, _ = kernel.shape
        self.linear = nn.Linear(3 * self.side**2, dim)
        self.linear.weight.data = weight.permute(0, 2, 3, 1).reshape(dim, -1).to(dtype)
        self.linear.bias.data = bias.to(dtype)

    def forward(self, image: Tensor) -> Tensor:
        p = self.side
        _, height, width, _ = image.shape
        x = image.reshape(-1, height // p, p, width // p, 3 * p)
        x = x.transpose(2, 3).reshape(-1, (height // p) * (width // p), 3 * p * p)
        x = x.to(self.linear.weight.dtype)
        out: Tensor = self.linear(x if self.scale is None else x * self.scale)
        return out  # (B, patches, D)


class NormalisedStem(nn.Module):
    """Any other stem, such as a convolutional one, behind the normalisation."""

    def __init__(self, stem: nn.Module, preprocess: Preprocess, dtype: torch.dtype) -> None:
        super().__init__()
        self.stem = stem
        self.dtype = dtype
        mean, std = _columns(preprocess)
        self.scale = nn.Buffer(1 / (255 * std))
        self.shift = nn.Buffer(-mean / std)

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        out: Tensor = self.stem(x.to(self.dtype))
        return out  # (B, patches, D)


def _columns(preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (3, 1, 1) each."""
    return torch.tensor(preprocess.mean)[:, None, None], torch.tensor(preprocess.std)[:, None, None]
