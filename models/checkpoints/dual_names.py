"""Names of the weights of a dual encoder, by Hugging Face and by OpenCLIP and OpenAI."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenfold.models.checkpoints.weights import NameTable, add_layer
from tokenfold.models.networks.dual import DualConfig

POOL = "vision_model.head.attention.in_proj"
TRUNK = "visual.trunk."


def huggingface(config: DualConfig) -> NameTable:
    """Return the names of `CLIPModel` or `SiglipModel`, as `prepare_huggingface` leaves them."""
    table: NameTable = {
        "logit_scale": ("logit_scale",),
        "image.pos_embed": ("vision_model.embeddings.position_embedding.weight",),
        "text.words.weight": ("text_model.embeddings.token_embedding.weight",),
        "text.positions.weight": ("text_model.embeddings.position_embedding.weight",),
    }
    attention = config.image.pool == "attention"
    patches = "vision_model.embeddings.patch_embedding"
    add_layer(table, "image.patch_embed.proj", patches, bias=config.image.patch_bias)
    huggingface_blocks(table, "image.blocks", "vision_model.encoder.layers", config.image.depth)
    huggingface_blocks(table, "text.blocks", "text_model.encoder.layers", config.text.depth)
    add_layer(table, "text.norm", "text_model.final_layer_norm")
    if not attention:
        table["image.cls_token"] = ("vision_model.embeddings.class_embedding",)
        add_layer(table, "image.norm_pre", "vision_model.pre_layrnorm")  # sic
        add_layer(table, "image.fc_norm", "vision_model.post_layernorm")
        add_layer(table, "image.head", "visual_projection", bias=False)
        add_layer(table, "text.head", "text_projection", bias=False)
        return table
    table["logit_bias"] = ("logit_bias",)
    add_layer(table, "image.norm", "vision_model.post_layernorm")
    ours, theirs = "image.attn_pool", "vision_model.head"
    table[f"{ours}.probe"] = (f"{theirs}.probe",)
    add_layer(table, f"{ours}.q", f"{POOL}.q")
    add_layer(table, f"{ours}.kv", f"{POOL}.kv")
    add_layer(table, f"{ours}.proj", f"{theirs}.attention.out_proj")
    add_layer(table, f"{ours}.norm", f"{theirs}.layernorm")
    add_layer(table, f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
    add_layer(table, f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2")
    add_layer(table, "text.head", "text_model.head")
    return table


def huggingface_blocks(table: NameTable, ours: str, theirs: str, depth: int) -> None:
    """Add the blocks of a tower of CLIP or SigLIP."""
    for i in range(depth):
        our_block, block = f"{ours}.{i}", f"{theirs}.{i}"
        add_layer(table, f"{our_block}.norm1", f"{block}.layer_norm1")
        add_layer(table, f"{our_block}.norm2", f"{block}.layer_norm2")
        add_layer(
            table, f"{our_block}.attn.qkv", *(f"{block}.self_attn.{part}_proj" for part in "qkv")
        )
        add_layer(table, f"{our_block}.attn.proj", f"{block}.self_attn.out_proj")
        add_layer(table, f"{our_block}.mlp.fc1", f"{block}.mlp.fc1")
        add_layer(table, f"{our_block}.mlp.fc2", f"{block}.mlp.fc2")


def prepare_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the joined projection of attention pooling into the query and the key and value."""
    split: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        stem, _, kind = key.rpartition("_")
        if stem == POOL:
            dim = tensor.shape[0] // 3
            split[f"{stem}.q.{kind}"], split[f"{stem}.kv.{kind}"] = tensor[:dim], tensor[dim:]
        else:
            split[key] = tensor
    return split


def open_clip(config: DualConfig, *, bias: bool) -> NameTable:
    """Return OpenCLIP's names, as `prepare_open_clip` leaves them.

    SigLIP's image tower has timm's names.

    Args:
        bias: whether the weights include a bias of the logits.
    """
    table: NameTable = {
        "logit_scale": ("logit_scale",),
        "text.words.weight": ("token_embedding.weight",),
        "text.positions.weight": ("positional_embedding",),
    }
    if bias:
        table["logit_bias"] = ("logit_bias",)
    _open_clip_blocks(table, "text.blocks", "transformer", config.text.depth)
    add_layer(table, "text.norm", "ln_final")
    add_layer(table, "text.head", "text_projection", bias=config.text.projection_bias)
    if config.image.pool == "attention":
        table["image.pos_embed"] = (f"{TRUNK}pos_embed",)
        table["image.attn_pool.probe"] = (f"{TRUNK}attn_pool.latent",)
        parts = [f"attn_pool.{part}" for part in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")]
        for i in range(config.image.depth):
            layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
            parts += [f"blocks.{i}.{layer}" for layer in layers]
        for part in ("patch_embed.proj", "norm", *parts):
            add_layer(table, f"image.{part}", f"{TRUNK}{part}")
        return table
    table["image.cls_token"] = ("visual.class_embedding",)
    table["image.pos_embed"] = ("visual.positional_embedding",)
    add_layer(table, "image.patch_embed.proj", "visual.conv1", bias=False)
    add_layer(table, "image.norm_pre", "visual.ln_pre")
    _open_clip_blocks(table, "image.blocks", "visual.transformer", config.image.depth)
    add_layer(table, "image.fc_norm", "visual.ln_post")
    add_layer(table, "image.head", "visual.proj", bias=False)
    return table


def _open_clip_blocks(table: NameTable, ours: str, theirs: str, depth: int) -> None:
    for i in range(depth):
        our_block, block = f"{ours}.{i}", f"{theirs}.resblocks.{i}"
        add_layer(table, f"{our_block}.norm1", f"{block}.ln_1")
        add_layer(table, f"{our_block}.norm2", f"{block}.ln_2")
        for kind in ("weight", "bias"):
            table[f"{our_block}.attn.qkv.{kind}"] = (f"{block}.attn.in_proj_{kind}",)
        add_layer(table, f"{our_block}.attn.proj", f"{block}.attn.out_proj")
        add_layer(table, f"{our_block}.mlp.fc1", f"{block}.mlp.c_fc")
        add_layer(table, f"{our_block}.mlp.fc2", f"{block}.mlp.c_proj")


def prepare_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the text tower's prefix, and turn projections into linear layers."""
    plain = {key.removeprefix("text."): tensor for key, tensor in weights.items()}
    for key in ("visual.proj", "text_projection"):
        if key in plain and plain[key].ndim == 2:
            plain[f"{key}.weight"] = plain.pop(key).T
    return plain


def reshape(weights: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """Reshape renamed vectors and scalars to our shapes, and add a missing bias of the logits.

    Args:
        dim: width of the image tower.
    """
    shaped = {"logit_bias": torch.zeros(()), **weights}
    if shaped["image.pos_embed"].ndim == 2:
        shaped["image.pos_embed"] = shaped["image.pos_embed"].unsqueeze(0)
    if "image.cls_token" in shaped and shaped["image.cls_token"].shape == (dim,):
        shaped["image.cls_token"] = shaped["image.cls_token"].view(1, 1, dim)
    for key in ("logit_scale", "logit_bias"):
        if shaped[key].shape == (1,):
            shaped[key] = shaped[key].view(())
    return shaped
