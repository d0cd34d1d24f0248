"""Loader of state dicts with timm's names: timm, official DeiT, DeiT-III and MAE files.

The weights determine width, depth, tokens, norms and LayerScale. They do not determine the number
of heads, the activation and the epsilon of the norms. A folder's `config.json` has these, see
`timm`. For a single file they come from its name if it starts with the name of an architecture;
otherwise heads have width 64 (ViT-H, g and G: 16 heads), the activation is GELU, epsilon 1e-6.
A file that fits several published networks is rejected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.checkpoints import architectures
from tokenfold.models.checkpoints.architectures import Architecture
from tokenfold.models.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    numbered_labels,
    vision_config,
)
from tokenfold.models.checkpoints.processors import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from tokenfold.models.checkpoints.weights import load_weights, patch_shape, weight_shape
from tokenfold.models.networks.vit import Pool, VisionConfig, VisionTransformer

HINT = "the file has no weights of a ViT with timm's names"


def from_weights(weights: Mapping[str, Tensor], file: Path) -> Checkpoint:
    """Load a state dict without a configuration.

    The pre-processing is that of the published files. DeiT and MAE use ImageNet's mean and standard
    deviation, and resize to 256/224 of the crop. A file named `vit_...` uses 0.5 for both, and one
    named after a CLIP uses CLIP's.

    Raises:
        CheckpointError: the weights fit no supported network, or several.
    """
    try:
        weights = rename_layer_scale(weights)
        architecture = architectures.guess(file.name)
        network = network_of(weights, architecture or _unnamed_architecture(weights), None, None)
        preprocess = _default_preprocess(network, architecture)
        return checkpoint(network, weights, preprocess, numbered_labels(network.classes))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def rename_layer_scale(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename `gamma_1` and `gamma_2`, LayerScale in official DeiT-III files, to timm's names."""
    return {
        re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", key): tensor
        for key, tensor in weights.items()
    }


def network_of(
    weights: Mapping[str, Tensor],
    architecture: Architecture,
    pool: Pool | None,
    image_size: tuple[int, int] | None,
) -> VisionConfig:
    """Return the configuration that follows from the weights and, for the rest, the architecture.

    Args:
        pool: pooling of a configuration file; None to derive it from the weights.
        image_size: image size of a configuration file; None to derive it from the positions.

    Raises:
        CheckpointError: the network is not supported, or contradicts the architecture.
    """
    if "reg_token" in weights:
        raise CheckpointError("reg_token: networks with register tokens are not supported")
    dim, patch = patch_shape(weights, "patch_embed.proj.weight", HINT)
    depth = _depth(weights)
    for name, value, expected in (
        ("width", dim, architecture.dim),
        ("depth", depth, architecture.depth),
        ("patch size", patch, architecture.patch_size),
    ):
        if expected is not None and value != expected:
            raise CheckpointError(
                f"{architecture.name} has {name} {expected}, but its weights have {value}"
            )
    prefix = ("cls_token" in weights) + ("dist_token" in weights)
    positions = weight_shape(weights, "pos_embed", 3, HINT)[1]
    size, covered = _grid(positions, prefix, patch, image_size)
    fc1 = weight_shape(weights, "blocks.0.mlp.fc1.weight", 2, HINT)[0]
    hidden = weight_shape(weights, "blocks.0.mlp.fc2.weight", 2, HINT)[1]
    if "head.weight" not in weights:
        raise CheckpointError("missing: head.weight; only classifiers can be served")
    if "fc_norm.weight" in weights:
        norm = "after"
    else:
        norm = "before" if "norm.weight" in weights else "none"
    if pool is None:
        pool = "mean" if norm == "after" or "cls_token" not in weights else "class"
    if "head_dist.weight" in weights:
        pool = "class+distill"
    return vision_config(
        architecture.name,
        image_size=size,
        patch_size=patch,
        dim=dim,
        depth=depth,
        heads=architecture.heads,
        mlp_dim=hidden,
        classes=weight_shape(weights, "head.weight", 2)[0],
        class_token="cls_token" in weights,
        distill_token="dist_token" in weights,
        activation=architecture.activation,
        gated_mlp=fc1 == 2 * hidden,
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        qk_norm="blocks.0.attn.q_norm.weight" in weights,
        layer_scale="blocks.0.ls1.gamma" in weights,
        eps=architecture.eps,
        patch_bias="patch_embed.proj.bias" in weights,
        position_prefix=covered,
        pre_norm="norm_pre.weight" in weights,
        final_norm=norm,
        pool=pool,
    )


def checkpoint(
    network: VisionConfig,
    weights: Mapping[str, Tensor],
    preprocess: Preprocess,
    labels: tuple[str, ...],
) -> Checkpoint:
    """Build the network and fill it with the weights."""
    model = VisionTransformer(network)
    load_weights(model, weights)
    return Checkpoint(model.eval(), preprocess, labels)


def _unnamed_architecture(weights: Mapping[str, Tensor]) -> Architecture:
    """Return the architecture of weights without a name.

    Raises:
        CheckpointError: the weights fit several published networks.
    """
    hint = (
        "; name the file after its timm architecture, or put it into a folder with a config.json "
        "that has architecture and model_args"
    )
    dim = weight_shape(weights, "patch_embed.proj.weight", 4, HINT)[0]
    if "blocks.0.attn.q_norm.weight" in weights:
        heads = dim // max(1, weights["blocks.0.attn.q_norm.weight"].shape[0])
    else:
        heads = architectures.heads_of(dim, hint)
        if "cls_token" not in weights:
            raise CheckpointError(
                f"networks without class token exist with different numbers of heads{hint}"
            )
    if "norm_pre.weight" in weights:
        raise CheckpointError(
            f"networks with norm_pre (CLIP) exist with GELU and with QuickGELU{hint}"
        )
    return Architecture("the network", None, None, heads, None)


def _depth(weights: Mapping[str, Tensor]) -> int:
    layers = {int(key.split(".")[1]) for key in weights if re.match(r"blocks\.\d+\.", key)}
    return len(layers)


def _grid(
    positions: int, prefix: int, patch: int, image_size: tuple[int, int] | None
) -> tuple[tuple[int, int], bool]:
    """Return the image size, and whether the positions cover the prefix tokens too."""
    if image_size is not None:
        patches = (image_size[0] // patch) * (image_size[1] // patch)
        if positions in (patches, patches + prefix):
            return image_size, positions == patches + prefix
        raise CheckpointError(
            f"pos_embed has {positions} positions, but images of {image_size[0]} x {image_size[1]} "
            f"pixels have {patches} patches of {patch} and {prefix} other tokens"
        )
    for patches in (positions - prefix, positions):
        side = math.isqrt(max(patches, 0))
        if side and side * side == patches:
            return (side * patch, side * patch), patches + prefix == positions
    raise CheckpointError(
        f"pos_embed has {positions} positions, not a square of patches and {prefix} other tokens; "
        "for other shapes, use a folder whose config.json has img_size"
    )


def _default_preprocess(network: VisionConfig, architecture: Architecture | None) -> Preprocess:
    height, width = network.image_size
    mean, std, ratio = IMAGENET_MEAN, IMAGENET_STD, 256 / 224
    if architecture is not None and architecture.clip:
        mean, std, ratio = CLIP_MEAN, CLIP_STD, 1.0
    elif architecture is not None and not architecture.deit:
        mean, std, ratio = HALF, HALF, 1 / 0.9
    return Preprocess(
        size=(height, width),
        resize="shorter",
        shorter_side=math.floor(min(height, width) * ratio),
        interpolation="bicubic",
        mean=mean,
        std=std,
    )
