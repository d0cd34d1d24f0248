"""Loader of SWAG's ViTs: the official state dicts, and torchvision's of the same networks.

The network is a plain ViT under other names. In every published file, heads have width 64 (ViT-H:
16 heads).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.checkpoints import architectures
from tokenfold.models.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    numbered_labels,
    vision_config,
)
from tokenfold.models.checkpoints.processors import IMAGENET_MEAN, IMAGENET_STD
from tokenfold.models.checkpoints.weights import (
    NameTable,
    add_layer,
    load_weights,
    rename,
    square_side,
)
from tokenfold.models.networks.vit import VisionTransformer

POSITIONS = "encoder.pos_embedding"
LAYER = re.compile(r"encoder\.layers\.(encoder_)?layer_(\d+)\.")


def recognises(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of SWAG or torchvision."""
    return POSITIONS in weights


def from_weights(weights: Mapping[str, Tensor], file: Path) -> Checkpoint:
    """Load a state dict.

    The pre-processing is that of the published files: a bicubic resize of the shorter side to the
    image size. Only torchvision's own ViTs (224 pixels, no `swag` in the file's name) have a
    bilinear resize to 256.

    Raises:
        CheckpointError: the weights do not fit such a classifier.
    """
    try:
        return _load(weights, file)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _load(weights: Mapping[str, Tensor], file: Path) -> Checkpoint:
    layers = {(match[1], int(match[2])) for key in weights if (match := LAYER.match(key))}
    torchvision = any(prefix for prefix, _ in layers)
    names = _names(weights, len(layers), torchvision)
    ours = rename(weights, names)
    positions = ours["pos_embed"]
    if positions.ndim == 3 and not torchvision:
        positions = ours["pos_embed"] = positions.transpose(0, 1)  # it is (N, 1, D) on disk
    dim, _, patch, _ = _weight(ours, names, "patch_embed.proj.weight", 4).shape
    if positions.ndim != 3:
        raise CheckpointError(f"{POSITIONS} has {positions.ndim} dimensions instead of 3")
    side = square_side(positions.shape[1] - 1, POSITIONS)
    network = vision_config(
        "the network",
        image_size=(side * patch, side * patch),
        patch_size=patch,
        dim=dim,
        depth=len(layers),
        heads=architectures.heads_of(dim),
        mlp_dim=_weight(ours, names, "blocks.0.mlp.fc1.weight", 2).shape[0],
        classes=_weight(ours, names, "head.weight", 2).shape[0],
    )
    model = VisionTransformer(network)
    load_weights(model, ours, names)
    plain = torchvision and side * patch == 224 and "swag" not in file.name
    preprocess = Preprocess(
        size=network.image_size,
        resize="shorter",
        shorter_side=256 if plain else side * patch,
        interpolation="bilinear" if plain else "bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return Checkpoint(model.eval(), preprocess, numbered_labels(network.classes))


def _names(weights: Mapping[str, Tensor], depth: int, torchvision: bool) -> NameTable:
    """Return the names of the weights."""
    table: NameTable = {"cls_token": ("class_token",), "pos_embed": (POSITIONS,)}
    add_layer(table, "patch_embed.proj", "conv_proj")
    add_layer(table, "norm", "encoder.ln")
    add_layer(table, "head", "heads.head" if torchvision else "head.layers.head")
    for i in range(depth):
        ours = f"blocks.{i}"
        theirs = f"encoder.layers.{'encoder_' if torchvision else ''}layer_{i}"
        # torchvision renamed these once; published files have the older names.
        newer = f"{theirs}.mlp.0.weight" in weights
        fc1, fc2 = ("mlp.0", "mlp.3") if newer else ("mlp.linear_1", "mlp.linear_2")
        attention = f"{theirs}.self_attention"
        add_layer(table, f"{ours}.norm1", f"{theirs}.ln_1")
        for kind in ("weight", "bias"):
            table[f"{ours}.attn.qkv.{kind}"] = (f"{attention}.in_proj_{kind}",)
        add_layer(table, f"{ours}.attn.proj", f"{attention}.out_proj")
        add_layer(table, f"{ours}.norm2", f"{theirs}.ln_2")
        add_layer(table, f"{ours}.mlp.fc1", f"{theirs}.{fc1}")
        add_layer(table, f"{ours}.mlp.fc2", f"{theirs}.{fc2}")
    return table


def _weight(weights: Mapping[str, Tensor], names: NameTable, key: str, dimensions: int) -> Tensor:
    if key not in weights:
        raise CheckpointError("the weights have no encoder layers")
    if weights[key].ndim != dimensions:
        raise CheckpointError(
            f"{names[key][0]} has {weights[key].ndim} dimensions instead of {dimensions}"
        )
    return weights[key]
