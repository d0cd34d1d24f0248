"""Configuration and initial weights of the small ViLT for scenes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tokenfold import scenes
from tokenfold.models.networks.pair import HeadConfig
from tokenfold.models.networks.vilt import Vilt, ViltConfig
from tokenfold.models.training.pair_data import LABELS, PATCH, SPECIAL

WIDTH = 160
CONFIG = ViltConfig(
    image_size=(scenes.SIZE, scenes.SIZE),
    patch_size=PATCH,
    dim=WIDTH,
    depth=6,
    heads_per_layer=5,
    mlp_dim=480,
    stem=((32, 2), (64, 2), (128, 2)),
    vocabulary=len(SPECIAL) + len(scenes.WORDS),
    most_text=32,
    modalities=3,
    heads={task: HeadConfig(classes=len(LABELS[task]), hidden=2 * WIDTH) for task in LABELS},
    layers=(1, 2, 3, 4),
    # The texts are short, so merging one word costs more accuracy than merging many patches.
    rates=(0.2, 0.2, 0.05),
)


def sinusoids(grid: tuple[int, int], dim: int) -> Tensor:
    """Return sines and cosines of row and column at dim / 4 wavelengths: (rows * columns, dim)."""
    frequencies = 100.0 ** -torch.linspace(0, 1, dim // 4)
    row, column = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    phases = [axis.reshape(-1, 1) * frequencies for axis in (row, column)]
    return torch.cat(
        [function for phase in phases for function in (phase.sin(), phase.cos())], dim=1
    )


def initialise() -> Vilt:
    """Return a network with initial weights."""
    model = Vilt(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Positions that start near zero stay a hundredth of the patches, too small to tell "left of".
    with torch.no_grad():
        model.pos_embed[:, 1:] = 0.5 * sinusoids(CONFIG.grid, WIDTH)
    for parameter in (
        model.cls_token,
        model.modality.weight,
        model.text_embed.words.weight,
        model.text_embed.positions.weight,
    ):
        nn.init.trunc_normal_(parameter, std=0.02)
    return cast(Vilt, model)
