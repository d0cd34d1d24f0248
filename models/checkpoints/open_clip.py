"""Loader of CLIP and SigLIP with the names of OpenCLIP, or of OpenAI, which OpenCLIP extends.

The weights determine almost everything. Heads, activations and pre-processing come from an
`open_clip_config.json` beside the weights. Without it, CLIP has heads of width 64 (ViT-H, g and G:
16 heads), and its activation comes from the name of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.checkpoints import (
    architectures,
    clip_tokenizer,
    dual_names,
    files,
    open_clip_config,
    processors,
    tokenizer,
)
from tokenfold.models.checkpoints.checkpoint import (
    CheckpointError,
    DualCheckpoint,
    network_config,
)
from tokenfold.models.checkpoints.dual_kinds import CLIP, SIGLIP, DualKind
from tokenfold.models.checkpoints.files import read_weights
from tokenfold.models.checkpoints.open_clip_config import (
    CONFIG,
    HEAD_WIDTH,
    Config,
    ImageConfig,
    NetworkConfig,
)
from tokenfold.models.checkpoints.weights import (
    load_weights,
    patch_shape,
    rename,
    square_side,
    weight_shape,
    without_prefixes,
)
from tokenfold.models.networks.blocks import Activation
from tokenfold.models.networks.dual import DualConfig, DualEncoder

# Entries that only OpenAI's files have beside the weights.
SETTINGS = ("input_resolution", "context_length", "vocab_size")
UNUSED = (*SETTINGS, "attn_mask", "text.attn_mask")

TEXT = "text."
DEPTH = re.compile(r"transformer\.resblocks\.(\d+)\.")
IMAGE_DEPTH = re.compile(r"visual\.(?:transformer\.resblocks|trunk\.blocks)\.(\d+)\.")

QUICK = re.compile(r"quickgelu|openai|metaclip", re.IGNORECASE)
EXACT = re.compile(r"laion|datacomp|commonpool", re.IGNORECASE)

# SigLIP's image towers with the tanh approximation of GELU; the others have the exact GELU.
TANH = re.compile(r"so400m|giantopt|base_patch32")
WIDE_HEADS = re.compile(r"so400m|giantopt")  # 16 heads
TRUNK = re.compile(r"vit_\w+_patch\d+_siglip_\d+")


def recognises(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has OpenCLIP's names, with any image tower."""
    text = any(f"{prefix}positional_embedding" in weights for prefix in ("", TEXT))
    return text and any(key.startswith("visual.") for key in weights)


def recognises_folder(folder: Path) -> bool:
    """Whether a folder is in OpenCLIP's format and has no weights in Hugging Face's format."""
    others = (files.SAFETENSORS, files.INDEX, files.PICKLED)
    return (folder / CONFIG).exists() and not any((folder / name).exists() for name in others)


def load(folder: Path) -> DualCheckpoint:
    """Load a folder in the format of OpenCLIP's repositories on the hub.

    Raises:
        CheckpointError: the folder has no weights, or as `from_weights`.
    """
    for name in files.OPEN_CLIP:
        if (folder / name).exists():
            return from_weights(read_weights(folder / name), folder / name)
    raise CheckpointError(f"{folder}: no weights ({' or '.join(files.OPEN_CLIP)})")


def from_weights(weights: Mapping[str, Tensor], file: Path) -> DualCheckpoint:
    """Load a state dict, with the configuration and the tokenizer of its folder.

    Raises:
        CheckpointError: the weights fit no such network, or several.
    """
    try:
        config = open_clip_config.read(file.parent / CONFIG)
        openai = any(key in weights for key in SETTINGS)
        plain = dual_names.prepare_open_clip(without_prefixes(weights, UNUSED))
        kind = _kind(plain)
        network = _network(kind, plain, config, file.name, openai)
        names = dual_names.open_clip(network, bias="logit_bias" in plain)
        model = DualEncoder(network)
        ours = dual_names.reshape(rename(plain, names), network.image.dim)
        load_weights(model, ours, names)
        default_tokenizer = kind.tokenizer
        if config is not None:
            default_tokenizer = config.model_cfg.text_cfg.hf_tokenizer_name or default_tokenizer
        text = tokenizer.find(
            file.parent,
            default_tokenizer,
            network.text.most_text,
            network.text.vocabulary,
            siglip=kind is SIGLIP,
        )
        if kind is CLIP:
            clip_tokenizer.check_end(text, None, "the tokenizer")
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    preprocess = _preprocess(kind, network, config)
    return DualCheckpoint(model.eval(), preprocess, text, kind.template)


def _kind(weights: Mapping[str, Tensor]) -> DualKind:
    if "visual.conv1.weight" in weights and "visual.class_embedding" in weights:
        return CLIP
    if "visual.trunk.attn_pool.latent" in weights:
        return SIGLIP
    raise CheckpointError(
        "the image tower is not supported; supported are the vision transformers of CLIP and "
        "SigLIP, not ResNets"
    )


def _network(
    kind: DualKind,
    weights: Mapping[str, Tensor],
    config: Config | None,
    name: str,
    openai: bool,
) -> DualConfig:
    model = NetworkConfig() if config is None else config.model_cfg
    vocabulary, text_dim = weight_shape(weights, "token_embedding.weight", 2)
    text_heads = model.text_cfg.heads or text_dim // HEAD_WIDTH
    if kind is CLIP:
        image = _clip_image(weights, None if config is None else model.vision_cfg)
        causal = not model.text_cfg.no_causal_mask
        if not causal or model.text_cfg.pool_type != "argmax":
            raise CheckpointError(
                "the text tower is not CLIP's: its attention is not causal, or its pool_type is "
                "not argmax"
            )
        activation = _activation(config, name, openai)
        image["activation"], text_activation = activation, activation
    else:
        image, text_activation = _siglip(weights, config)
    projection = weight_shape(weights, "text_projection.weight", 2)[0]
    image_side = _side(weights, image)
    return network_config(
        DualConfig,
        "the network",
        image=kind.image | image | image_side,
        text=kind.text
        | {
            "vocabulary": vocabulary,
            "most_text": weight_shape(weights, "positional_embedding", 2)[0],
            "dim": text_dim,
            "depth": _depth(weights, DEPTH),
            "heads": text_heads,
            "mlp_dim": weight_shape(weights, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            "classes": projection,
            "activation": text_activation,
            "eps": model.text_cfg.norm_kwargs.eps,
            "projection_bias": "text_projection.bias" in weights,
        },
        scores="sigmoid" if "logit_bias" in weights else "softmax",
    )


def _clip_image(weights: Mapping[str, Tensor], config: ImageConfig | None) -> dict[str, Any]:
    dim, patch = patch_shape(weights, "visual.conv1.weight")
    heads = architectures.heads_of(dim) if config is None else dim // config.head_width
    return {
        "patch_size": patch,
        "dim": dim,
        "depth": _depth(weights, IMAGE_DEPTH),
        "heads": heads,
        "mlp_dim": weight_shape(weights, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "classes": weight_shape(weights, "visual.proj.weight", 2)[0],
    }


def _siglip(
    weights: Mapping[str, Tensor], config: Config | None
) -> tuple[dict[str, Any], Activation]:
    """Return the fields of the image tower, and the text tower's activation."""
    if config is None:
        raise CheckpointError(
            "SigLIP exists with GELU and with its tanh approximation; put its "
            f"{CONFIG} beside the weights"
        )
    image, text = config.model_cfg.vision_cfg, config.model_cfg.text_cfg
    trunk = image.timm_model_name or ""
    if not TRUNK.fullmatch(trunk) or (image.timm_pool, image.timm_proj) not in (
        ("map", "none"),
        ("map", None),
    ):
        raise CheckpointError(
            f"{CONFIG}: vision_cfg is {trunk} with pool {image.timm_pool} and projection "
            f"{image.timm_proj}; supported is vit_SIZE_patchN_siglip_N with pool map and "
            "projection none"
        )
    if not text.no_causal_mask or text.pool_type != "last":
        raise CheckpointError(f"{CONFIG}: text_cfg must have no_causal_mask and pool_type last")
    dim, patch = patch_shape(weights, f"{dual_names.TRUNK}patch_embed.proj.weight")
    heads = 16 if WIDE_HEADS.search(trunk) else architectures.heads_of(dim)
    fields = {
        "patch_size": patch,
        "dim": dim,
        "depth": _depth(weights, IMAGE_DEPTH),
        "heads": heads,
        "mlp_dim": weight_shape(weights, f"{dual_names.TRUNK}blocks.0.mlp.fc1.weight", 2)[0],
        "activation": "gelu_tanh" if TANH.search(trunk) else "gelu",
        "image_size": image.size or (int(trunk.rpartition("_")[2]),) * 2,
    }
    return fields, "gelu_tanh" if text.act_kwargs.approximate == "tanh" else "gelu"


def _activation(config: Config | None, name: str, openai: bool) -> Activation:
    if config is not None:
        if config.model_cfg.text_cfg.act_kwargs.approximate != "none":
            raise CheckpointError(f"{CONFIG}: text_cfg.act_kwargs is not supported for CLIP")
        return "quick_gelu" if config.model_cfg.quick_gelu else "gelu"
    if openai or QUICK.search(name):
        return "quick_gelu"
    if EXACT.search(name):
        return "gelu"
    raise CheckpointError(
        f"CLIP exists with GELU and with QuickGELU; put its {CONFIG} beside the weights, or name "
        "the file after its training: quickgelu, openai or metaclip for QuickGELU; laion, "
        "datacomp or commonpool for GELU"
    )


def _side(weights: Mapping[str, Tensor], image: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the image size: the given one, else that of a square of positions."""
    patch, size = image["patch_size"], image.get("image_size")
    if size is not None:
        return {"cut_edges": any(side % patch for side in size)}
    positions = "visual.positional_embedding"
    side = square_side(weight_shape(weights, positions, 2)[0] - 1, positions)
    return {"image_size": (side * patch, side * patch)}


def _depth(weights: Mapping[str, Tensor], names: re.Pattern[str]) -> int:
    return len({match[1] for key in weights if (match := names.match(key))})


def _preprocess(kind: DualKind, network: DualConfig, config: Config | None) -> Preprocess:
    size = network.image.image_size
    default = processors.default(kind.name, size)
    if config is None:
        return default
    pixels = config.preprocess_cfg
    squash = pixels.resize_mode == "squash" or (pixels.resize_mode is None and kind is SIGLIP)
    return Preprocess(
        size=size,
        resize="stretch" if squash else "shorter",
        shorter_side=None if squash else size[0],
        interpolation=pixels.interpolation,
        mean=pixels.mean or default.mean,
        std=pixels.std or default.std,
    )
