"""The tiny ViLT of the world of scenes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tokenfold import scenes
from tokenfold.models.pair import HeadConfig
from tokenfold.models.training.scenes_data import LABELS, PATCH, SPECIAL
from tokenfold.models.vilt import Vilt, ViltConfig

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
    # The texts are short: each word that merges costs more than all the patches it stands beside.
    rates=(0.2, 0.2, 0.05),
)


def waves(grid: tuple[int, int], dim: int) -> Tensor:
    """Sines and cosines of row and column, at dim / 4 wavelengths: (rows * columns, dim)."""
    frequencies = 100.0 ** -torch.linspace(0, 1, dim // 4)
    row, column = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    phases = [at.reshape(-1, 1) * frequencies for at in (row, column)]
    return torch.cat([wave for phase in phases for wave in (phase.sin(), phase.cos())], dim=1)


def initialised() -> Vilt:
    """A new network."""
    model = Vilt(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Learned from nothing, positions stay a hundredth of what a patch shows: no "left of" then.
    with torch.no_grad():
        model.pos_embed[:, 1:] = 0.5 * waves(CONFIG.grid, WIDTH)
    for parameter in (
        model.cls_token,
        model.modality.weight,
        model.text_embed.words.weight,
        model.text_embed.positions.weight,
    ):
        nn.init.trunc_normal_(parameter, std=0.02)
    return cast(Vilt, model)
