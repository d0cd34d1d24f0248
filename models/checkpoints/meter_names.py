"""Names of the weights of a METER, in the official code and in PuMer's files."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tokenfold.bundle.tasks import PairTask
from tokenfold.models.checkpoints import pair_heads
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.weights import NameTable, add_layer
from tokenfold.models.networks.meter import MeterConfig

SEGMENTS = "text.segments"
POSITIONS = "text.positions"
FIRST_POSITION = 2
"""Position of RoBERTa's first token; the rows before it are for padding."""


def official(config: MeterConfig, heads: Mapping[PairTask, str]) -> NameTable:
    """Return the names of the published code.

    Args:
        heads: name of each task's head.
    """
    table: NameTable = {}
    _vision(table, config)
    _text(table, config)
    table["modality.weight"] = ("token_type_embeddings.weight",)
    for stream in ("text", "image"):
        theirs = f"cross_modal_{stream}"
        add_layer(table, f"{stream}_transform", f"{theirs}_transform")
        add_layer(table, f"{stream}_pooler", f"{theirs}_pooler.dense")
        for i in range(config.depth):
            ours, block = f"pairs.{i}.{stream}", f"{theirs}_layers.{i}"
            _attention(table, f"{ours}.self_attn", f"{block}.attention")
            _attention(table, f"{ours}.cross_attn", f"{block}.crossattention")
            _mlp(table, f"{ours}.mlp", block)
    pair_heads.add_names(table, config.heads, heads)
    return table


def _vision(table: NameTable, config: MeterConfig) -> None:
    theirs = "vit_model.visual"
    table["patch_embed.proj.weight"] = (f"{theirs}.conv1.weight",)
    table["vision.cls_token"] = (f"{theirs}.class_embedding",)
    table["vision.pos_embed"] = (f"{theirs}.positional_embedding",)
    add_layer(table, "vision.norm_pre", f"{theirs}.ln_pre")
    add_layer(table, "vision.norm", f"{theirs}.ln_post")
    for i in range(config.vision_depth):
        ours, block = f"vision.blocks.{i}", f"{theirs}.transformer.resblocks.{i}"
        add_layer(table, f"{ours}.norm1", f"{block}.ln_1")
        for kind in ("weight", "bias"):
            table[f"{ours}.attn.qkv.{kind}"] = (f"{block}.attn.in_proj_{kind}",)
        add_layer(table, f"{ours}.attn.proj", f"{block}.attn.out_proj")
        add_layer(table, f"{ours}.norm2", f"{block}.ln_2")
        add_layer(table, f"{ours}.mlp.fc1", f"{block}.mlp.c_fc")
        add_layer(table, f"{ours}.mlp.fc2", f"{block}.mlp.c_proj")


def _text(table: NameTable, config: MeterConfig) -> None:
    theirs = "text_transformer.embeddings"
    table["text.words.weight"] = (f"{theirs}.word_embeddings.weight",)
    table[POSITIONS] = (f"{theirs}.position_embeddings.weight",)
    table[SEGMENTS] = (f"{theirs}.token_type_embeddings.weight",)
    add_layer(table, "text.norm", f"{theirs}.LayerNorm")
    for i in range(config.text_depth):
        ours, block = f"text.blocks.{i}", f"text_transformer.encoder.layer.{i}"
        _attention(table, f"{ours}.attn", f"{block}.attention")
        _mlp(table, f"{ours}.mlp", block)


def fold(weights: dict[str, Tensor], config: MeterConfig) -> dict[str, Tensor]:
    """Reshape embeddings to our shapes, and add the only segment embedding to the positions.

    Raises:
        CheckpointError: the shapes do not fit.
    """
    segments, positions = weights.pop(SEGMENTS), weights[POSITIONS]
    last = FIRST_POSITION + config.most_text
    if segments.shape != (1, config.dim) or positions.shape[1:] != (config.dim,):
        raise CheckpointError(
            f"the text's segments {tuple(segments.shape)} and positions {tuple(positions.shape)} "
            f"differ from RoBERTa's, which has one segment and width {config.dim}"
        )
    if len(positions) < last:
        raise CheckpointError(
            f"texts of {config.most_text} tokens need {last} positions; there are {len(positions)}"
        )
    return {
        **weights,
        POSITIONS: (positions[FIRST_POSITION:last] + segments)[None],
        "vision.cls_token": weights["vision.cls_token"].reshape(1, 1, -1),
        "vision.pos_embed": weights["vision.pos_embed"][None],
    }


def _attention(table: NameTable, ours: str, theirs: str) -> None:
    projections = f"{theirs}.self"
    add_layer(table, f"{ours}.q", f"{projections}.query")
    add_layer(table, f"{ours}.kv", f"{projections}.key", f"{projections}.value")
    add_layer(table, f"{ours}.proj", f"{theirs}.output.dense")
    add_layer(table, f"{ours}.norm", f"{theirs}.output.LayerNorm")


def _mlp(table: NameTable, ours: str, theirs: str) -> None:
    add_layer(table, f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense")
    add_layer(table, f"{ours}.mlp.fc2", f"{theirs}.output.dense")
    add_layer(table, f"{ours}.norm", f"{theirs}.output.LayerNorm")
