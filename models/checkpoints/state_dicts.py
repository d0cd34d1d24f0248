"""Networks from state dicts with timm's names: timm, official DeiT, DeiT-III and MAE files.

The weights say almost everything: width, depth, tokens, norms, LayerScale. They do not say how
many heads there are, which activation, and which eps. A folder's `config.json` says these, see
`timm`. For a file on its own they come from its name where that starts with an architecture's,
else: heads of width 64 (ViT-H, g and G: 16 heads), GELU, eps 1e-6. Where that would be a guess
between published networks, loading is refused.
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
    load_weights,
    vision_config,
)
from tokenfold.models.checkpoints.processors import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from tokenfold.models.vit import Pool, VisionConfig, VisionTransformer


def from_weights(weights: Mapping[str, Tensor], file: Path) -> Checkpoint:
    """A network from a state dict alone.

    The pre-processing is that of the published files: ImageNet's mean and deviation and a resize to
    256/224 of the crop (DeiT, MAE), or by the file's name 0.5 (`vit_...`) or CLIP's.

    Raises:
        CheckpointError: the weights fit no supported network, or several; the message says why.
    """
    try:
        weights = renamed(weights)
        named = architectures.guess(file.name)
        network = network_of(weights, named or _unnamed(weights), None, None)
        labels = tuple(f"LABEL_{index}" for index in range(network.classes))
        return checkpoint(network, weights, _usual(network, named), labels)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official DeiT-III files keep LayerScale as `gamma_1` and `gamma_2` of a block."""
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
    """What the weights show, and the rest by the architecture, which has to agree."""
    if "reg_token" in weights:
        raise CheckpointError("reg_token: networks with register tokens are not supported")
    patches = _weight(weights, "patch_embed.proj.weight", 4)
    dim, channels, patch, width = patches.shape
    if channels != 3 or patch != width:
        raise CheckpointError(
            f"patch_embed.proj.weight is {tuple(patches.shape)}: not square patches of 3 channels"
        )
    depth = _depth(weights)
    for what, have, want in (
        ("width", dim, architecture.dim),
        ("depth", depth, architecture.depth),
        ("patch size", patch, architecture.patch_size),
    ):
        if want is not None and have != want:
            raise CheckpointError(
                f"{architecture.name} has {what} {want}, but its weights have {have}"
            )
    prefix = ("cls_token" in weights) + ("dist_token" in weights)
    positions = _weight(weights, "pos_embed", 3).shape[1]
    size, covered = _grid(positions, prefix, patch, image_size)
    fc1 = _weight(weights, "blocks.0.mlp.fc1.weight", 2).shape[0]
    hidden = _weight(weights, "blocks.0.mlp.fc2.weight", 2).shape[1]
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
        classes=_weight(weights, "head.weight", 2).shape[0],
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
    model = VisionTransformer(network)
    load_weights(model, weights)
    return Checkpoint(model.eval(), preprocess, labels)


def _unnamed(weights: Mapping[str, Tensor]) -> Architecture:
    """The published network that unnamed weights are of, if that is certain."""
    advice = (
        "; name the file after its timm architecture, or put it into a folder with a config.json "
        "that has architecture and model_args"
    )
    dim = _weight(weights, "patch_embed.proj.weight", 4).shape[0]
    heads = architectures.heads_of(dim)
    if "blocks.0.attn.q_norm.weight" in weights:
        heads = dim // max(1, weights["blocks.0.attn.q_norm.weight"].shape[0])
    elif heads is None:
        raise CheckpointError(f"how many heads share a width of {dim} is not known{advice}")
    elif "cls_token" not in weights:
        raise CheckpointError(
            f"networks without class token exist with different numbers of heads{advice}"
        )
    if "norm_pre.weight" in weights:
        raise CheckpointError(
            f"networks with norm_pre (CLIP) exist with GELU and with QuickGELU{advice}"
        )
    return Architecture("the network", None, None, heads, None)


def _depth(weights: Mapping[str, Tensor]) -> int:
    layers = {int(key.split(".")[1]) for key in weights if re.match(r"blocks\.\d+\.", key)}
    return len(layers)


def _weight(weights: Mapping[str, Tensor], key: str, dimensions: int) -> Tensor:
    if key not in weights:
        raise CheckpointError(f"missing: {key}; it has no weights of a ViT with timm's names")
    if weights[key].ndim != dimensions:
        raise CheckpointError(f"{key} has {weights[key].ndim} dimensions instead of {dimensions}")
    return weights[key]


def _grid(
    positions: int, prefix: int, patch: int, image_size: tuple[int, int] | None
) -> tuple[tuple[int, int], bool]:
    """The image size, and whether positions cover the prefix tokens too."""
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
        f"pos_embed has {positions} positions, which are no square of patches and {prefix} other "
        "tokens; for other shapes, use a folder whose config.json gives img_size"
    )


def _usual(network: VisionConfig, named: Architecture | None) -> Preprocess:
    height, width = network.image_size
    mean, std, ratio = IMAGENET_MEAN, IMAGENET_STD, 256 / 224
    if named is not None and named.clip:
        mean, std, ratio = CLIP_MEAN, CLIP_STD, 1.0
    elif named is not None and not named.deit:
        mean, std, ratio = HALF, HALF, 1 / 0.9
    return Preprocess(
        size=(height, width),
        resize="shorter",
        shorter_side=math.floor(min(height, width) * ratio),
        interpolation="bicubic",
        mean=mean,
        std=std,
    )
