"""What the weights of a dual encoder are called: by Hugging Face, and by OpenCLIP and OpenAI."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenfold.models.checkpoints.weight_names import Names, layer
from tokenfold.models.dual import DualConfig

POOL = "vision_model.head.attention.in_proj"
TRUNK = "visual.trunk."


def huggingface(config: DualConfig) -> Names:
    """Our names -> those of `CLIPModel` or `SiglipModel`, after `prepare_huggingface`."""
    table: Names = {
        "logit_scale": ("logit_scale",),
        "image.pos_embed": ("vision_model.embeddings.position_embedding.weight",),
        "text.words.weight": ("text_model.embeddings.token_embedding.weight",),
        "text.positions.weight": ("text_model.embeddings.position_embedding.weight",),
    }
    attention = config.image.pool == "attention"
    patches = "vision_model.embeddings.patch_embedding"
    layer(table, "image.patch_embed.proj", patches, bias=config.image.patch_bias)
    huggingface_blocks(table, "image.blocks", "vision_model.encoder.layers", config.image.depth)
    huggingface_blocks(table, "text.blocks", "text_model.encoder.layers", config.text.depth)
    layer(table, "text.norm", "text_model.final_layer_norm")
    if not attention:
        table["image.cls_token"] = ("vision_model.embeddings.class_embedding",)
        layer(table, "image.norm_pre", "vision_model.pre_layrnorm")  # spelt so
        layer(table, "image.fc_norm", "vision_model.post_layernorm")
        layer(table, "image.head", "visual_projection", bias=False)
        layer(table, "text.head", "text_projection", bias=False)
        return table
    table["logit_bias"] = ("logit_bias",)
    layer(table, "image.norm", "vision_model.post_layernorm")
    ours, theirs = "image.attn_pool", "vision_model.head"
    table[f"{ours}.probe"] = (f"{theirs}.probe",)
    layer(table, f"{ours}.q", f"{POOL}.q")
    layer(table, f"{ours}.kv", f"{POOL}.kv")
    layer(table, f"{ours}.proj", f"{theirs}.attention.out_proj")
    layer(table, f"{ours}.norm", f"{theirs}.layernorm")
    layer(table, f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
    layer(table, f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2")
    layer(table, "text.head", "text_model.head")
    return table


def huggingface_blocks(table: Names, ours: str, theirs: str, depth: int) -> None:
    """Add the layers of one of CLIP's or SigLIP's towers."""
    for i in range(depth):
        own, their = f"{ours}.{i}", f"{theirs}.{i}"
        layer(table, f"{own}.norm1", f"{their}.layer_norm1")
        layer(table, f"{own}.norm2", f"{their}.layer_norm2")
        layer(table, f"{own}.attn.qkv", *(f"{their}.self_attn.{part}_proj" for part in "qkv"))
        layer(table, f"{own}.attn.proj", f"{their}.self_attn.out_proj")
        layer(table, f"{own}.mlp.fc1", f"{their}.mlp.fc1")
        layer(table, f"{own}.mlp.fc2", f"{their}.mlp.fc2")


def prepare_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take apart what attention pooling joins: the query's third of a weight, and the others'."""
    split: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        stem, _, kind = key.rpartition("_")
        if stem == POOL:
            dim = tensor.shape[0] // 3
            split[f"{stem}.q.{kind}"], split[f"{stem}.kv.{kind}"] = tensor[:dim], tensor[dim:]
        else:
            split[key] = tensor
    return split


def open_clip(config: DualConfig, *, bias: bool) -> Names:
    """Our names -> OpenCLIP's, after `prepare_open_clip`; SigLIP's image tower has timm's names.

    Args:
        bias: whether the weights have a bias of the logits.
    """
    table: Names = {
        "logit_scale": ("logit_scale",),
        "text.words.weight": ("token_embedding.weight",),
        "text.positions.weight": ("positional_embedding",),
    }
    if bias:
        table["logit_bias"] = ("logit_bias",)
    _open_clip_blocks(table, "text.blocks", "transformer", config.text.depth)
    layer(table, "text.norm", "ln_final")
    layer(table, "text.head", "text_projection", bias=config.text.projection_bias)
    if config.image.pool == "attention":
        table["image.pos_embed"] = (f"{TRUNK}pos_embed",)
        table["image.attn_pool.probe"] = (f"{TRUNK}attn_pool.latent",)
        parts = [f"attn_pool.{part}" for part in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")]
        for i in range(config.image.depth):
            own = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
            parts += [f"blocks.{i}.{part}" for part in own]
        for part in ("patch_embed.proj", "norm", *parts):
            layer(table, f"image.{part}", f"{TRUNK}{part}")
        return table
    table["image.cls_token"] = ("visual.class_embedding",)
    table["image.pos_embed"] = ("visual.positional_embedding",)
    layer(table, "image.patch_embed.proj", "visual.conv1", bias=False)
    layer(table, "image.norm_pre", "visual.ln_pre")
    _open_clip_blocks(table, "image.blocks", "visual.transformer", config.image.depth)
    layer(table, "image.fc_norm", "visual.ln_post")
    layer(table, "image.head", "visual.proj", bias=False)
    return table


def _open_clip_blocks(table: Names, ours: str, theirs: str, depth: int) -> None:
    for i in range(depth):
        own, their = f"{ours}.{i}", f"{theirs}.resblocks.{i}"
        layer(table, f"{own}.norm1", f"{their}.ln_1")
        layer(table, f"{own}.norm2", f"{their}.ln_2")
        for kind in ("weight", "bias"):
            table[f"{own}.attn.qkv.{kind}"] = (f"{their}.attn.in_proj_{kind}",)
        layer(table, f"{own}.attn.proj", f"{their}.attn.out_proj")
        layer(table, f"{own}.mlp.fc1", f"{their}.mlp.c_fc")
        layer(table, f"{own}.mlp.fc2", f"{their}.mlp.c_proj")


def prepare_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the text tower one form: its names without prefix, projections as linear layers."""
    plain = {key.removeprefix("text."): tensor for key, tensor in weights.items()}
    for key in ("visual.proj", "text_projection"):
        if key in plain and plain[key].ndim == 2:
            plain[f"{key}.weight"] = plain.pop(key).T
    return plain


def shape(weights: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """Bring renamed vectors and scalars into our form, where only their shape differs.

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
