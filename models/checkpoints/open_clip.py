"""Dual encoders by OpenCLIP's names, and OpenAI's, which they continue: CLIP and SigLIP.

The weights say almost everything. Heads, activations and pre-processing are in
`open_clip_config.json` where it lies beside them. Without it CLIP's heads are 64 wide (those of
ViT-H, g and G: 16 heads), and its activation comes from the name of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.blocks import Activation
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
    load_weights,
    network_config,
    rename,
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
from tokenfold.models.checkpoints.weight_names import shape, without
from tokenfold.models.dual import DualConfig, DualEncoder

# What OpenAI's files hold beside the weights, and nobody else's.
SETTINGS = ("input_resolution", "context_length", "vocab_size")
UNUSED = (*SETTINGS, "attn_mask", "text.attn_mask")

TEXT = "text."
DEPTH = re.compile(r"transformer\.resblocks\.(\d+)\.")
IMAGE_DEPTH = re.compile(r"visual\.(?:transformer\.resblocks|trunk\.blocks)\.(\d+)\.")

QUICK = re.compile(r"quickgelu|openai|metaclip", re.IGNORECASE)
EXACT = re.compile(r"laion|datacomp|commonpool", re.IGNORECASE)

# The towers of timm with the tanh approximation; the others of SigLIP have the exact GELU.
TANH = re.compile(r"so400m|giantopt|base_patch32")
WIDE_HEADS = re.compile(r"so400m|giantopt")  # of which there are 16
TRUNK = re.compile(r"vit_\w+_patch\d+_siglip_\d+")


def recognises(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has OpenCLIP's names, of any image tower."""
    text = any(f"{prefix}positional_embedding" in weights for prefix in ("", TEXT))
    return text and any(key.startswith("visual.") for key in weights)


def recognises_folder(folder: Path) -> bool:
    """Whether a folder is one of OpenCLIP's, and has no weights by Hugging Face's names."""
    others = (files.SAFETENSORS, files.INDEX, files.PICKLED)
    return (folder / CONFIG).exists() and not any((folder / name).exists() for name in others)


def load(folder: Path) -> DualCheckpoint:
    """Read a folder as on OpenCLIP's hub pages.

    Raises:
        CheckpointError: it has no weights, or as `from_weights`.
    """
    for name in files.OPEN_CLIP:
        if (folder / name).exists():
            return from_weights(read_weights(folder / name), folder / name)
    raise CheckpointError(f"{folder}: no weights in it: {' or '.join(files.OPEN_CLIP)}")


def from_weights(weights: Mapping[str, Tensor], file: Path) -> DualCheckpoint:
    """A network from a state dict; its configuration and a tokenizer are looked for beside it.

    Raises:
        CheckpointError: the weights fit no such network, or several; the message says why.
    """
    try:
        given = open_clip_config.read(file.parent / CONFIG)
        openai = any(key in weights for key in SETTINGS)
        plain = dual_names.prepare_open_clip(without(weights, UNUSED))
        kind = _kind(plain)
        network = _network(kind, plain, given, file.name, openai)
        layout = dual_names.open_clip(network, bias="logit_bias" in plain)
        model = DualEncoder(network)
        ours = dual_names.shape(rename(plain, layout), network.image.dim)
        load_weights(model, ours, layout)
        usual = kind.tokenizer
        if given is not None:
            usual = given.model_cfg.text_cfg.hf_tokenizer_name or usual
        text = tokenizer.find(
            file.parent,
            usual,
            network.text.most_text,
            network.text.vocabulary,
            siglip=kind is SIGLIP,
        )
        if kind is CLIP:
            clip_tokenizer.check_end(text, None, "the tokenizer")
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    preprocess = _preprocess(kind, network, given)
    return DualCheckpoint(model.eval(), preprocess, text, kind.template)


def _kind(weights: Mapping[str, Tensor]) -> DualKind:
    if "visual.conv1.weight" in weights and "visual.class_embedding" in weights:
        return CLIP
    if "visual.trunk.attn_pool.latent" in weights:
        return SIGLIP
    raise CheckpointError(
        "the image tower is neither CLIP's vision transformer nor SigLIP's; others, such as "
        "ResNets, are not supported"
    )


def _network(
    kind: DualKind,
    weights: Mapping[str, Tensor],
    given: Config | None,
    name: str,
    openai: bool,
) -> DualConfig:
    config = NetworkConfig() if given is None else given.model_cfg
    vocabulary, text_dim = shape(weights, "token_embedding.weight", 2)
    text_heads = config.text_cfg.heads or text_dim // HEAD_WIDTH
    if kind is CLIP:
        image = _clip_image(weights, None if given is None else config.vision_cfg)
        causal = not config.text_cfg.no_causal_mask
        if not causal or config.text_cfg.pool_type != "argmax":
            raise CheckpointError("the text tower is not CLIP's: it sees all tokens, or pools last")
        activation = _activation(given, name, openai)
        image["activation"], text_activation = activation, activation
    else:
        image, text_activation = _siglip(weights, given)
    projection = shape(weights, "text_projection.weight", 2)[0]
    image_side = _side(weights, image)
    return network_config(
        DualConfig,
        "the network",
        image=kind.image | image | image_side,
        text=kind.text
        | {
            "vocabulary": vocabulary,
            "most_text": shape(weights, "positional_embedding", 2)[0],
            "dim": text_dim,
            "depth": _depth(weights, DEPTH),
            "heads": text_heads,
            "mlp_dim": shape(weights, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            "classes": projection,
            "activation": text_activation,
            "eps": config.text_cfg.norm_kwargs.eps,
            "projection_bias": "text_projection.bias" in weights,
        },
        scores="sigmoid" if "logit_bias" in weights else "softmax",
    )


def _clip_image(weights: Mapping[str, Tensor], config: ImageConfig | None) -> dict[str, Any]:
    dim, channels, patch, width = shape(weights, "visual.conv1.weight", 4)
    if channels != 3 or patch != width:
        raise CheckpointError("visual.conv1 has no square patches of 3 channels")
    heads = architectures.heads_of(dim) if config is None else dim // config.head_width
    if not heads:
        raise CheckpointError(f"how many heads share a width of {dim} is not known")
    return {
        "patch_size": patch,
        "dim": dim,
        "depth": _depth(weights, IMAGE_DEPTH),
        "heads": heads,
        "mlp_dim": shape(weights, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "classes": shape(weights, "visual.proj.weight", 2)[0],
    }


def _siglip(
    weights: Mapping[str, Tensor], config: Config | None
) -> tuple[dict[str, Any], Activation]:
    """The image tower, and the text tower's activation."""
    if config is None:
        raise CheckpointError(
            f"SigLIPs exist with GELU and with its tanh approximation; {CONFIG} has to lie beside"
        )
    image, text = config.model_cfg.vision_cfg, config.model_cfg.text_cfg
    trunk = image.timm_model_name or ""
    if not TRUNK.fullmatch(trunk) or (image.timm_pool, image.timm_proj) not in (
        ("map", "none"),
        ("map", None),
    ):
        raise CheckpointError(
            f"{CONFIG}: vision_cfg is {trunk} with pool {image.timm_pool} and projection "
            f"{image.timm_proj}; supported are SigLIP's, vit_SIZE_patchN_siglip_N with map and none"
        )
    if not text.no_causal_mask or text.pool_type != "last":
        raise CheckpointError(f"{CONFIG}: text_cfg is causal or pools another token than the last")
    dim, channels, patch, width = shape(weights, f"{dual_names.TRUNK}patch_embed.proj.weight", 4)
    if channels != 3 or patch != width:
        raise CheckpointError(f"{dual_names.TRUNK}patch_embed has no square patches of 3 channels")
    heads = 16 if WIDE_HEADS.search(trunk) else architectures.heads_of(dim)
    if heads is None:
        raise CheckpointError(f"how many heads share a width of {dim} is not known")
    fields = {
        "patch_size": patch,
        "dim": dim,
        "depth": _depth(weights, IMAGE_DEPTH),
        "heads": heads,
        "mlp_dim": shape(weights, f"{dual_names.TRUNK}blocks.0.mlp.fc1.weight", 2)[0],
        "activation": "gelu_tanh" if TANH.search(trunk) else "gelu",
        "image_size": image.size or (int(trunk.rpartition("_")[2]),) * 2,
    }
    return fields, "gelu_tanh" if text.act_kwargs.approximate == "tanh" else "gelu"


def _activation(config: Config | None, name: str, openai: bool) -> Activation:
    if config is not None:
        if config.model_cfg.text_cfg.act_kwargs.approximate != "none":
            raise CheckpointError(f"{CONFIG}: text_cfg.act_kwargs is not supported of CLIP")
        return "quick_gelu" if config.model_cfg.quick_gelu else "gelu"
    if openai or QUICK.search(name):
        return "quick_gelu"
    if EXACT.search(name):
        return "gelu"
    raise CheckpointError(
        f"CLIPs exist with GELU and with QuickGELU; put {CONFIG} beside, or name the file after "
        "its training: quickgelu, openai or metaclip for QuickGELU; laion, datacomp or commonpool "
        "for GELU"
    )


def _side(weights: Mapping[str, Tensor], image: Mapping[str, Any]) -> dict[str, Any]:
    """The image size: what is given, else that of a square of positions."""
    patch, size = image["patch_size"], image.get("image_size")
    if size is not None:
        return {"cut_edges": any(side % patch for side in size)}
    positions = shape(weights, "visual.positional_embedding", 2)[0] - 1
    side = math.isqrt(max(positions, 0))
    if side == 0 or side * side != positions:
        raise CheckpointError(
            f"visual.positional_embedding has {positions} patches, which form no square"
        )
    return {"image_size": (side * patch, side * patch)}


def _depth(weights: Mapping[str, Tensor], names: re.Pattern[str]) -> int:
    return len({found[1] for key in weights if (found := names.match(key))})


def _preprocess(kind: DualKind, network: DualConfig, given: Config | None) -> Preprocess:
    size = network.image.image_size
    usual = processors.usual(kind.name, size)
    if given is None:
        return usual
    config = given.preprocess_cfg
    squash = config.resize_mode == "squash" or (config.resize_mode is None and kind is SIGLIP)
    return Preprocess(
        size=size,
        resize="stretch" if squash else "shorter",
        shorter_side=None if squash else size[0],
        interpolation=config.interpolation,
        mean=config.mean or usual.mean,
        std=config.std or usual.std,
    )
