"""The tiny ViLT of the world of scenes."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from models.demo import scenes
from models.pair import HeadConfig
from models.training.scenes_data import LABELS, PATCH, SPECIAL
from models.vilt import Vilt, ViltConfig

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
    rates=(0.1, 0.3, 0.2),
)


def initialised() -> Vilt:
    """A new network."""
    model = Vilt(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in (
        model.cls_token,
        model.pos_embed,
        model.modality.weight,
        model.text_embed.words.weight,
        model.text_embed.positions.weight,
    ):
        nn.init.trunc_normal_(parameter, std=0.02)
    return cast(Vilt, model)
