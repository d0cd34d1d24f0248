"""What the weights of a ViLT are called: by Hugging Face, and officially (PuMer's too)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tokenfold.bundle.tasks import PairTask
from tokenfold.models.checkpoints import pair_heads
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.weight_names import Names, layer
from tokenfold.models.vilt import ViltConfig

SEGMENTS = "text_embed.segments"
"""BERT's token types, of which ViLT uses the first alone; `fold` adds it to the positions."""


def huggingface(config: ViltConfig, head: str) -> Names:
    """Our names -> theirs.

    Args:
        head: what the only task's head is called.
    """
    table = _embeddings("vilt.embeddings.text_embeddings")
    embeddings = "vilt.embeddings"
    table["cls_token"] = (f"{embeddings}.cls_token",)
    table["pos_embed"] = (f"{embeddings}.position_embeddings",)
    table["modality.weight"] = (f"{embeddings}.token_type_embeddings.weight",)
    layer(table, "patch_embed.proj", f"{embeddings}.patch_embeddings.projection")
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"vilt.encoder.layer.{i}"
        parts = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
        layer(table, f"{ours}.norm1", f"{theirs}.layernorm_before")
        layer(table, f"{ours}.attn.qkv", *parts)
        layer(table, f"{ours}.attn.proj", f"{theirs}.attention.output.dense")
        layer(table, f"{ours}.norm2", f"{theirs}.layernorm_after")
        layer(table, f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense")
        layer(table, f"{ours}.mlp.fc2", f"{theirs}.output.dense")
    layer(table, "norm", "vilt.layernorm")
    layer(table, "pooler", "vilt.pooler.dense")
    pair_heads.names(table, config.heads, dict.fromkeys(config.heads, head))
    return table


def official(config: ViltConfig, heads: Mapping[PairTask, str]) -> Names:
    """Our names -> those of the published code.

    Args:
        heads: what each task's head is called.
    """
    table = _embeddings("text_embeddings")
    table["cls_token"] = ("transformer.cls_token",)
    table["pos_embed"] = ("transformer.pos_embed",)
    table["modality.weight"] = ("token_type_embeddings.weight",)
    layer(table, "patch_embed.proj", "transformer.patch_embed.proj")
    for i in range(config.depth):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            layer(table, f"blocks.{i}.{part}", f"transformer.blocks.{i}.{part}")
    layer(table, "norm", "transformer.norm")
    layer(table, "pooler", "pooler.dense")
    pair_heads.names(table, config.heads, heads)
    return table


def fold(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the only token type that is used to the text's positions, and drop them.

    Raises:
        CheckpointError: their shapes do not fit.
    """
    segments, positions = weights.pop(SEGMENTS), weights["text_embed.positions.weight"]
    if segments.ndim != 2 or positions.ndim != 2 or segments.shape[1] != positions.shape[1]:
        raise CheckpointError(
            f"the text's token types {tuple(segments.shape)} and positions "
            f"{tuple(positions.shape)} are not of one width"
        )
    return {**weights, "text_embed.positions.weight": positions + segments[:1]}


def _embeddings(theirs: str) -> Names:
    table: Names = {
        "text_embed.words.weight": (f"{theirs}.word_embeddings.weight",),
        "text_embed.positions.weight": (f"{theirs}.position_embeddings.weight",),
        SEGMENTS: (f"{theirs}.token_type_embeddings.weight",),
    }
    layer(table, "text_embed.norm", f"{theirs}.LayerNorm")
    return table
