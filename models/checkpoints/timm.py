"""Loader of timm folders, as on the hub: `config.json` with `architecture`, and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.checkpoints import architectures
from tokenfold.models.checkpoints.architectures import Architecture
from tokenfold.models.checkpoints.checkpoint import Checkpoint, CheckpointError, numbered_labels
from tokenfold.models.checkpoints.files import folder_weights, read_json
from tokenfold.models.checkpoints.processors import IMAGENET_MEAN, IMAGENET_STD
from tokenfold.models.checkpoints.state_dicts import checkpoint, network_of, rename_layer_scale
from tokenfold.models.networks.blocks import ACTIVATIONS, Activation
from tokenfold.models.networks.vit import Pool, VisionConfig

CONFIG = "config.json"
POOLS: dict[str, Pool] = {"token": "class", "avg": "mean"}

# `model_args` that change nothing at inference, or whose effect the weights show.
VISIBLE_ARGS = {
    "act_layer", "attn_drop_rate", "class_token", "depth", "drop_path_rate", "drop_rate",
    "dynamic_img_pad", "dynamic_img_size", "embed_dim", "fc_norm", "final_norm", "fix_init",
    "global_pool", "img_size", "in_chans", "init_values", "mlp_ratio", "no_embed_class",
    "num_classes", "num_heads", "patch_drop_rate", "patch_size", "pos_drop_rate", "pre_norm",
    "proj_drop_rate", "qk_norm", "qkv_bias", "weight_init",
}  # fmt: skip


def load(folder: Path) -> Checkpoint:
    """Load a folder in the format of timm's repositories on the hub.

    Raises:
        CheckpointError: the architecture or an option is not supported, or the weights do not fit.
    """
    try:
        config = read_json(folder / CONFIG)
        architecture = architectures.parse(str(config.get("architecture")))
        args = _object(config, "model_args")
        for key, value in args.items():
            if key not in VISIBLE_ARGS and value and (key, value) != ("pos_embed", "learn"):
                raise CheckpointError(f"model_args: {key} = {value!r} is not supported")
        architecture = architecture._replace(
            # The weights show the effect of these arguments.
            dim=None if "embed_dim" in args else architecture.dim,
            depth=None if "depth" in args else architecture.depth,
            patch_size=None if "patch_size" in args else architecture.patch_size,
            heads=args.get("num_heads") or architecture.heads,
            activation=_activation(args.get("act_layer"), architecture),
        )
        # Folders of old versions have these fields at the top level.
        pretrained = _object(config, "pretrained_cfg") or config
        weights = rename_layer_scale(folder_weights(folder))
        pool = args.get("global_pool") or config.get("global_pool")
        network = network_of(weights, architecture, _pool(pool), _image_size(args, pretrained))
        return checkpoint(
            network, weights, _preprocess(pretrained, network), _labels(config, network.classes)
        )
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _object(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{CONFIG}: {key} is not an object")
    return value


def _activation(name: object, architecture: Architecture) -> Activation:
    if name is None:
        return architecture.activation
    for known in ACTIVATIONS:
        if name == known or (name, known) == ("swish", "silu"):
            return known
    raise CheckpointError(
        f"model_args: act_layer is {name!r}; supported are {', '.join(ACTIVATIONS)}"
    )


def _pool(name: object) -> Pool | None:
    if not name:
        return None
    if name not in POOLS:
        raise CheckpointError(f"global_pool is {name!r}; supported are {', '.join(POOLS)}")
    return POOLS[str(name)]


def _image_size(args: Mapping[str, Any], pretrained: Mapping[str, Any]) -> tuple[int, int]:
    size = args.get("img_size")
    if size is None:
        size = (pretrained.get("input_size") or [3, 224, 224])[1:]
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise CheckpointError(f"the image size is {size!r}; it must be a height and a width")
    return pair


def _preprocess(pretrained: Mapping[str, Any], network: VisionConfig) -> Preprocess:
    size = network.image_size
    crop = float(pretrained.get("crop_pct") or 0.875)
    mode = pretrained.get("crop_mode") or "center"
    interpolation = pretrained.get("interpolation") or "bicubic"
    common = {
        "size": size,
        "interpolation": interpolation,
        "mean": pretrained.get("mean") or IMAGENET_MEAN,
        "std": pretrained.get("std") or IMAGENET_STD,
    }
    if mode == "squash" and crop == 1.0:
        common["resize"] = "stretch"
    elif mode == "center" and size[0] == size[1]:
        common |= {"resize": "shorter", "shorter_side": math.floor(size[0] / crop)}
    else:
        raise CheckpointError(
            f"pretrained_cfg: crop_mode {mode!r} with crop_pct {crop} at {size[0]} x {size[1]} is "
            "not supported; supported are center crops of square images, and squash with 1.0"
        )
    try:
        return Preprocess(**common)
    except ValueError as error:
        raise CheckpointError(f"pretrained_cfg: {error}") from error


def _labels(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    names = config.get("label_names") or config.get("labels")
    if not names:
        return numbered_labels(classes)
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(classes)]
    if not isinstance(names, list) or len(names) != classes or None in names:
        raise CheckpointError(f"{CONFIG}: label_names must name classes 0 to {classes - 1}")
    descriptions = _object(config, "label_descriptions")
    return tuple(str(descriptions.get(name, name)) for name in names)
