"""Names of the weights of a ViLT, by Hugging Face and in the official code, which PuMer shares."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tokenfold.bundle.tasks import PairTask
from tokenfold.models.checkpoints import pair_heads
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.weights import NameTable, add_layer
from tokenfold.models.networks.vilt import ViltConfig

SEGMENTS = "text_embed.segments"
"""BERT's token types, of which ViLT uses only the first; `fold` adds it to the positions."""


def huggingface(config: ViltConfig, head: str) -> NameTable:
    """Return Hugging Face's names.

    Args:
        head: name of the head of the only task.
    """
    table = _embeddings("vilt.embeddings.text_embeddings")
    embeddings = "vilt.embeddings"
    table["cls_token"] = (f"{embeddings}.cls_token",)
    table["pos_embed"] = (f"{embeddings}.position_embeddings",)
    table["modality.weight"] = (f"{embeddings}.token_type_embeddings.weight",)
    add_layer(table, "patch_embed.proj", f"{embeddings}.patch_embeddings.projection")
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"vilt.encoder.layer.{i}"
        parts = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
        add_layer(table, f"{ours}.norm1", f"{theirs}.layernorm_before")
        add_layer(table, f"{ours}.attn.qkv", *parts)
        add_layer(table, f"{ours}.attn.proj", f"{theirs}.attention.output.dense")
        add_layer(table, f"{ours}.norm2", f"{theirs}.layernorm_after")
        add_layer(table, f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense")
        add_layer(table, f"{ours}.mlp.fc2", f"{theirs}.output.dense")
    add_layer(table, "norm", "vilt.layernorm")
    add_layer(table, "pooler", "vilt.pooler.dense")
    pair_heads.add_names(table, config.heads, dict.fromkeys(config.heads, head))
    return table


def official(config: ViltConfig, heads: Mapping[PairTask, str]) -> NameTable:
    """Return the names of the published code.

    Args:
        heads: name of each task's head.
    """
    table = _embeddings("text_embeddings")
    table["cls_token"] = ("transformer.cls_token",)
    table["pos_embed"] = ("transformer.pos_embed",)
    table["modality.weight"] = ("token_type_embeddings.weight",)
    add_layer(table, "patch_embed.proj", "transformer.patch_embed.proj")
    for i in range(config.depth):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            add_layer(table, f"blocks.{i}.{part}", f"transformer.blocks.{i}.{part}")
    add_layer(table, "norm", "transformer.norm")
    add_layer(table, "pooler", "pooler.dense")
    pair_heads.add_names(table, config.heads, heads)
    return table


def fold(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the only token type that is used to the text's positions, and drop the token types.

    Raises:
        CheckpointError: the shapes do not fit.
    """
    segments, positions = weights.pop(SEGMENTS), weights["text_embed.positions.weight"]
    if segments.ndim != 2 or positions.ndim != 2 or segments.shape[1] != positions.shape[1]:
        raise CheckpointError(
            f"the text's token types {tuple(segments.shape)} and positions "
            f"{tuple(positions.shape)} differ in width"
        )
    return {**weights, "text_embed.positions.weight": positions + segments[:1]}


def _embeddings(theirs: str) -> NameTable:
    table: NameTable = {
        "text_embed.words.weight": (f"{theirs}.word_embeddings.weight",),
        "text_embed.positions.weight": (f"{theirs}.position_embeddings.weight",),
        SEGMENTS: (f"{theirs}.token_type_embeddings.weight",),
    }
    add_layer(table, "text_embed.norm", f"{theirs}.LayerNorm")
    return table
