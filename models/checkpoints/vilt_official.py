"""ViLT by its published names: the official files, and PuMer's folders.

The weights say almost everything. Heads are 64 wide, as in all that was published, unless a
configuration says otherwise.
"""

from __future__ import annotations

import math
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
    load_weights,
    network_config,
    rename,
)
from tokenfold.models.checkpoints.pumer import Reduction
from tokenfold.models.checkpoints.weight_names import shape, without
from tokenfold.models.vilt import Vilt, ViltConfig

CONFIG = "config.json"
TOKENIZER_OF = "google-bert/bert-base-uncased"

PREFIX = "vilt."  # of all but the heads, in PuMer's files
BLOCK = "transformer.blocks.0.norm1.weight"
DEPTH = re.compile(r"transformer\.blocks\.(\d+)\.")

UNUSED = ("text_embeddings.position_ids", "transformer.mask_token")


def recognises(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the published names."""
    positions = "text_embeddings.word_embeddings.weight"
    return any({prefix + BLOCK, prefix + positions} <= weights.keys() for prefix in ("", PREFIX))


def from_weights(weights: Mapping[str, Tensor], file: Path) -> PairCheckpoint:
    """An official file; answers and a tokenizer are looked for beside it.

    Raises:
        CheckpointError: the weights fit no such network; the message says why.
    """
    try:
        model = _model(weights, None, None)
        config = model.config
        return PairCheckpoint(
            model,
            processors.usual_vilt(config.image_size, config.patch_size),
            pair_heads.labels(config.heads, {}, file.parent, alphabetical=False),
            tokenizer.find(file.parent, TOKENIZER_OF, config.most_text, config.vocabulary),
            weighted=True,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def from_folder(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str
) -> PairCheckpoint:
    """A folder of PuMer's; what was trained without reduction (`-ft`) gets the usual one.

    Args:
        config: content of `config.json`.
        name: what the checkpoint was asked for as; it may say how it reduces.

    Raises:
        CheckpointError: the weights fit no such network, or it reduces in an unknown way.
    """
    where = str(folder / CONFIG)
    heads = config.get("num_heads")
    if heads is not None and (not isinstance(heads, int) or heads < 1):
        raise CheckpointError(f"{where}: num_heads is {heads!r}, no number of heads")
    reduction = pumer.read(config, name, where)
    try:
        model = _model(weights, heads, reduction)
        network = model.config
        labels = pair_heads.labels(network.heads, config, folder, alphabetical=True)
        usual = str(config.get("tokenizer") or TOKENIZER_OF)
        text = tokenizer.find(folder, usual, network.most_text, network.vocabulary)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    preprocess = Preprocess(size=network.image_size, interpolation="bilinear")
    return PairCheckpoint(model, preprocess, labels, text, weighted=reduction is None)


def _model(
    weights: Mapping[str, Tensor], heads_per_layer: int | None, reduction: Reduction | None
) -> Vilt:
    found = pair_heads.find(weights)
    plain = {key.removeprefix(PREFIX): tensor for key, tensor in weights.items()}
    plain = without(plain, (*UNUSED, *pair_heads.unused(found)))
    network = _network(plain, found, heads_per_layer, reduction)
    layout = vilt_names.official(network, found)
    model = Vilt(network)
    load_weights(model, vilt_names.fold(rename(plain, layout)), layout)
    return model.eval()


def _network(
    weights: Mapping[str, Tensor],
    found: Mapping[PairTask, str],
    heads_per_layer: int | None,
    reduction: Reduction | None,
) -> ViltConfig:
    dim, channels, patch, width = shape(weights, "transformer.patch_embed.proj.weight", 4)
    if channels != 3 or patch != width:
        raise CheckpointError("transformer.patch_embed has no square patches of 3 channels")
    positions = shape(weights, "transformer.pos_embed", 3)[1] - 1
    side = math.isqrt(max(positions, 0))
    if side == 0 or side * side != positions:
        raise CheckpointError(
            f"transformer.pos_embed has {positions} patches, which form no square"
        )
    heads = heads_per_layer or architectures.heads_of(dim)
    if heads is None:
        raise CheckpointError(f"how many heads share a width of {dim} is not known")
    vocabulary, _ = shape(weights, "text_embeddings.word_embeddings.weight", 2)
    most_text, _ = shape(weights, "text_embeddings.position_embeddings.weight", 2)
    depth = len({layer[1] for key in weights if (layer := DEPTH.match(key))})
    layers, rates = reduction or usual(next(iter(found)), depth)
    return network_config(
        ViltConfig,
        "the network",
        image_size=(side * patch, side * patch),
        patch_size=patch,
        dim=dim,
        depth=depth,
        heads_per_layer=heads,
        mlp_dim=shape(weights, "transformer.blocks.0.mlp.fc1.weight", 2)[0],
        vocabulary=vocabulary,
        most_text=most_text,
        modalities=shape(weights, "token_type_embeddings.weight", 2)[0],
        layers=layers,
        rates=rates,
        heads={task: pair_heads.config(weights, task, name) for task, name in found.items()},
    )


def usual(task: PairTask, depth: int) -> Reduction:
    """How PuMer reduces for a task, as published, where a checkpoint does not say it."""
    layers = (2, 4, 6, 8) if task == "entail" else (2, 5, 8)
    return Reduction(tuple(layer for layer in layers if layer < depth), (0.1, 0.3, 0.2))
