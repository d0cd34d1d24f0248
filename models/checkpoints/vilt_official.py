"""Loader of ViLT with its published names: the official files, and PuMer's folders.

The weights determine almost everything. Heads have width 64, as in all published networks, unless a
configuration has `num_heads`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.models.checkpoints import (
    architectures,
    pair_heads,
    processors,
    pumer,
    tokenizer,
    vilt_names,
)
from tokenfold.models.checkpoints.checkpoint import (
    CheckpointError,
    PairCheckpoint,
    network_config,
    positive_integer,
)
from tokenfold.models.checkpoints.pumer import PuMerReduction
from tokenfold.models.checkpoints.weights import (
    load_weights,
    patch_shape,
    rename,
    square_side,
    weight_shape,
    without_prefixes,
)
from tokenfold.models.networks.vilt import Vilt, ViltConfig

CONFIG = "config.json"
TOKENIZER_OF = "google-bert/bert-base-uncased"

PREFIX = "vilt."  # of all weights but the heads, in PuMer's files
BLOCK = "transformer.blocks.0.norm1.weight"
DEPTH = re.compile(r"transformer\.blocks\.(\d+)\.")

UNUSED = ("text_embeddings.position_ids", "transformer.mask_token")


def recognises(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the published names."""
    positions = "text_embeddings.word_embeddings.weight"
    return any({prefix + BLOCK, prefix + positions} <= weights.keys() for prefix in ("", PREFIX))


def from_weights(weights: Mapping[str, Tensor], file: Path) -> PairCheckpoint:
    """Load an official file, with the answers and the tokenizer of its folder.

    Raises:
        CheckpointError: the weights do not fit the network.
    """
    try:
        model = _model(weights, None, None)
        config = model.config
        return PairCheckpoint(
            model,
            processors.default_vilt(config.image_size, config.patch_size),
            pair_heads.labels(config.heads, {}, file.parent, alphabetical=False),
            tokenizer.find(file.parent, TOKENIZER_OF, config.most_text, config.vocabulary),
            weighted=True,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def from_folder(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str
) -> PairCheckpoint:
    """Load a folder of PuMer's.

    A network that was trained without reduction (`-ft`) gets the published one for its task.

    Args:
        config: content of `config.json`.
        name: name of the checkpoint, which may tell its reduction.

    Raises:
        CheckpointError: the weights do not fit the network, or its reduction is not supported.
    """
    where = str(folder / CONFIG)
    heads = positive_integer(config, "num_heads", where)
    reduction = pumer.read(config, name, where)
    try:
        model = _model(weights, heads, reduction)
        network = model.config
        labels = pair_heads.labels(network.heads, config, folder, alphabetical=True)
        repository = str(config.get("tokenizer") or TOKENIZER_OF)
        text = tokenizer.find(folder, repository, network.most_text, network.vocabulary)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    preprocess = Preprocess(size=network.image_size, interpolation="bilinear")
    return PairCheckpoint(model, preprocess, labels, text, weighted=reduction is None)


def _model(
    weights: Mapping[str, Tensor], heads_per_layer: int | None, reduction: PuMerReduction | None
) -> Vilt:
    head_names = pair_heads.find_heads(weights)
    plain = {key.removeprefix(PREFIX): tensor for key, tensor in weights.items()}
    plain = without_prefixes(plain, (*UNUSED, *pair_heads.unused_prefixes(head_names)))
    network = _network(plain, head_names, heads_per_layer, reduction)
    names = vilt_names.official(network, head_names)
    model = Vilt(network)
    load_weights(model, vilt_names.fold(rename(plain, names)), names)
    return model.eval()


def _network(
    weights: Mapping[str, Tensor],
    head_names: Mapping[PairTask, str],
    heads_per_layer: int | None,
    reduction: PuMerReduction | None,
) -> ViltConfig:
    dim, patch = patch_shape(weights, "transformer.patch_embed.proj.weight")
    positions = "transformer.pos_embed"
    side = square_side(weight_shape(weights, positions, 3)[1] - 1, positions)
    heads = heads_per_layer or architectures.heads_of(dim)
    vocabulary, _ = weight_shape(weights, "text_embeddings.word_embeddings.weight", 2)
    most_text, _ = weight_shape(weights, "text_embeddings.position_embeddings.weight", 2)
    depth = len({layer[1] for key in weights if (layer := DEPTH.match(key))})
    layers, rates = reduction or default_reduction(next(iter(head_names)), depth)
    return network_config(
        ViltConfig,
        "the network",
        image_size=(side * patch, side * patch),
        patch_size=patch,
        dim=dim,
        depth=depth,
        heads_per_layer=heads,
        mlp_dim=weight_shape(weights, "transformer.blocks.0.mlp.fc1.weight", 2)[0],
        vocabulary=vocabulary,
        most_text=most_text,
        modalities=weight_shape(weights, "token_type_embeddings.weight", 2)[0],
        layers=layers,
        rates=rates,
        heads={
            task: pair_heads.head_config(weights, task, name) for task, name in head_names.items()
        },
    )


def default_reduction(task: PairTask, depth: int) -> PuMerReduction:
    """Return PuMer's published reduction for a task."""
    layers = (2, 4, 6, 8) if task == "entail" else (2, 5, 8)
    return PuMerReduction(tuple(layer for layer in layers if layer < depth), (0.1, 0.3, 0.2))
