"""SWAG's ViTs: the official state dicts, and torchvision's of the same networks.

The network is a plain ViT under other names. Heads are 64 wide (ViT-H: 16 heads), which holds for
every published file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.checkpoints import architectures
from tokenfold.models.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_weights,
    rename,
    vision_config,
)
from tokenfold.models.checkpoints.processors import IMAGENET_MEAN, IMAGENET_STD
from tokenfold.models.vit import VisionTransformer

POSITIONS = "encoder.pos_embedding"
LAYER = re.compile(r"encoder\.layers\.(encoder_)?layer_(\d+)\.")


def recognises(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has SWAG's or torchvision's names."""
    return POSITIONS in weights


def from_weights(weights: Mapping[str, Tensor], file: Path) -> Checkpoint:
    """A network from a state dict.

    The pre-processing is that of the published files: the shorter side to the image size, bicubic.
    Only torchvision's own ViTs (224 pixels, no `swag` in the file's name) resize to 256, bilinear.

    Raises:
        CheckpointError: the weights are not those of such a classifier; the message says why.
    """
    try:
        return _load(weights, file)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _load(weights: Mapping[str, Tensor], file: Path) -> Checkpoint:
    layers = {(found[1], int(found[2])) for key in weights if (found := LAYER.match(key))}
    torchvision = any(prefix for prefix, _ in layers)
    layout = _layout(weights, len(layers), torchvision)
    ours = rename(weights, layout)
    positions = ours["pos_embed"]
    if positions.ndim == 3 and not torchvision:
        positions = ours["pos_embed"] = positions.transpose(0, 1)  # it is (N, 1, D) on disk
    dim, _, patch, _ = _weight(ours, layout, "patch_embed.proj.weight", 4).shape
    side = math.isqrt(positions.shape[1] - 1) if positions.ndim == 3 else 0
    heads = architectures.heads_of(dim)
    if side == 0 or side * side != positions.shape[1] - 1:
        raise CheckpointError(
            f"{POSITIONS} of shape {tuple(weights[POSITIONS].shape)} is not a class token and a "
            "square of patches"
        )
    if heads is None:
        raise CheckpointError(f"how many heads share a width of {dim} is not known")
    network = vision_config(
        "the network",
        image_size=(side * patch, side * patch),
        patch_size=patch,
        dim=dim,
        depth=len(layers),
        heads=heads,
        mlp_dim=_weight(ours, layout, "blocks.0.mlp.fc1.weight", 2).shape[0],
        classes=_weight(ours, layout, "head.weight", 2).shape[0],
    )
    model = VisionTransformer(network)
    load_weights(model, ours, layout)
    plain = torchvision and side * patch == 224 and "swag" not in file.name
    preprocess = Preprocess(
        size=network.image_size,
        resize="shorter",
        shorter_side=256 if plain else side * patch,
        interpolation="bilinear" if plain else "bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    labels = tuple(f"LABEL_{index}" for index in range(network.classes))
    return Checkpoint(model.eval(), preprocess, labels)


def _layout(
    weights: Mapping[str, Tensor], depth: int, torchvision: bool
) -> dict[str, tuple[str, ...]]:
    """Our names -> theirs."""
    head = "heads.head" if torchvision else "head.layers.head"
    names = {
        "cls_token": "class_token",
        "pos_embed": POSITIONS,
        **_pair("patch_embed.proj", "conv_proj"),
        **_pair("norm", "encoder.ln"),
        **_pair("head", head),
    }
    for i in range(depth):
        ours = f"blocks.{i}"
        theirs = f"encoder.layers.{'encoder_' if torchvision else ''}layer_{i}"
        # torchvision renamed these once; published files have the older names.
        newer = f"{theirs}.mlp.0.weight" in weights
        fc1, fc2 = ("mlp.0", "mlp.3") if newer else ("mlp.linear_1", "mlp.linear_2")
        attention = f"{theirs}.self_attention"
        names |= {
            **_pair(f"{ours}.norm1", f"{theirs}.ln_1"),
            f"{ours}.attn.qkv.weight": f"{attention}.in_proj_weight",
            f"{ours}.attn.qkv.bias": f"{attention}.in_proj_bias",
            **_pair(f"{ours}.attn.proj", f"{attention}.out_proj"),
            **_pair(f"{ours}.norm2", f"{theirs}.ln_2"),
            **_pair(f"{ours}.mlp.fc1", f"{theirs}.{fc1}"),
            **_pair(f"{ours}.mlp.fc2", f"{theirs}.{fc2}"),
        }
    return {ours: (theirs,) for ours, theirs in names.items()}


def _pair(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


def _weight(
    weights: Mapping[str, Tensor], layout: Mapping[str, tuple[str, ...]], key: str, dimensions: int
) -> Tensor:
    if key not in weights:
        raise CheckpointError("it has no encoder layers")
    if weights[key].ndim != dimensions:
        raise CheckpointError(
            f"{layout[key][0]} has {weights[key].ndim} dimensions instead of {dimensions}"
        )
    return weights[key]
