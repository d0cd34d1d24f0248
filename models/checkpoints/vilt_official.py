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

from models.checkpoints import answers, architectures, processors, pumer, tokenizer, vilt_names
from models.checkpoints.checkpoint import (
    CheckpointError,
    PairCheckpoint,
    load_weights,
    network_config,
    rename,
)
from models.checkpoints.pumer import Reduction
from models.pair import HeadConfig
from models.preprocess import Preprocess
from models.tasks import PairTask
from models.vilt import Vilt, ViltConfig

CONFIG = "config.json"
TOKENIZER_OF = "google-bert/bert-base-uncased"

PREFIX = "vilt."  # of all but the heads, in PuMer's files
BLOCK = "transformer.blocks.0.norm1.weight"
DEPTH = re.compile(r"transformer\.blocks\.(\d+)\.")

# By the name of the head's last layer. `rank_output` comes before `itm_score`, which it was made
# from and which retrieval no longer asks.
HEADS: dict[str, tuple[PairTask, str]] = {
    "vqa_classifier.3": ("vqa", "vqa_classifier"),
    "ve_classifier.3": ("entail", "ve_classifier"),
    "nlvr2_classifier.3": ("reason", "nlvr2_classifier"),
    "rank_output": ("match", "rank_output"),
    "itm_score.fc": ("match", "itm_score.fc"),
}
LABELS: dict[PairTask, tuple[str, ...]] = {
    "entail": ("contradiction", "neutral", "entailment"),
    "reason": ("false", "true"),
    "match": ("no match", "match"),
}
UNUSED = (
    "text_embeddings.position_ids", "transformer.mask_token", "mlm_score.", "mpp_score.",
)  # fmt: skip


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
            {
                task: answers.beside(file.parent, head.classes, alphabetical=False)
                if task == "vqa"
                else _labels(task, head)
                for task, head in config.heads.items()
            },
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
        labels: dict[PairTask, tuple[str, ...]] = {}
        for task, head in network.heads.items():
            if task == "vqa":
                given = answers.of_config(config, head.classes, where)
                labels[task] = given or answers.beside(folder, head.classes, alphabetical=True)
            else:
                labels[task] = _labels(task, head)
        usual = str(config.get("tokenizer") or TOKENIZER_OF)
        text = tokenizer.find(folder, usual, network.most_text, network.vocabulary)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    preprocess = Preprocess(size=network.image_size, interpolation="bilinear")
    return PairCheckpoint(model, preprocess, labels, text, weighted=reduction is None)


def _model(
    weights: Mapping[str, Tensor], heads_per_layer: int | None, reduction: Reduction | None
) -> Vilt:
    found = _tasks(weights)
    retired = ("itm_score.",) if found.get("match") == "rank_output" else ()
    plain = {key.removeprefix(PREFIX): tensor for key, tensor in weights.items()}
    plain = vilt_names.without(plain, (*UNUSED, *retired))
    network = _network(plain, found, heads_per_layer, reduction)
    layout = vilt_names.official(network, found)
    model = Vilt(network)
    load_weights(model, vilt_names.fold(rename(plain, layout)), layout)
    return model.eval()


def _tasks(weights: Mapping[str, Tensor]) -> dict[PairTask, str]:
    """The tasks that there are heads for, and what each head is called."""
    found: dict[PairTask, str] = {}
    for layer, (task, head) in HEADS.items():
        if f"{layer}.weight" in weights:
            found.setdefault(task, head)
    if not found:
        raise CheckpointError(
            f"the weights have no head of a task: {', '.join(f'{name}.weight' for name in HEADS)}; "
            "one that was only pre-trained answers nothing"
        )
    return found


def _network(
    weights: Mapping[str, Tensor],
    found: Mapping[PairTask, str],
    heads_per_layer: int | None,
    reduction: Reduction | None,
) -> ViltConfig:
    dim, channels, patch, width = vilt_names.shape(
        weights, "transformer.patch_embed.proj.weight", 4
    )
    if channels != 3 or patch != width:
        raise CheckpointError("transformer.patch_embed has no square patches of 3 channels")
    positions = vilt_names.shape(weights, "transformer.pos_embed", 3)[1] - 1
    side = math.isqrt(max(positions, 0))
    if side == 0 or side * side != positions:
        raise CheckpointError(
            f"transformer.pos_embed has {positions} patches, which form no square"
        )
    heads = heads_per_layer or architectures.heads_of(dim)
    if heads is None:
        raise CheckpointError(f"how many heads share a width of {dim} is not known")
    vocabulary, _ = vilt_names.shape(weights, "text_embeddings.word_embeddings.weight", 2)
    most_text, _ = vilt_names.shape(weights, "text_embeddings.position_embeddings.weight", 2)
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
        mlp_dim=vilt_names.shape(weights, "transformer.blocks.0.mlp.fc1.weight", 2)[0],
        vocabulary=vocabulary,
        most_text=most_text,
        modalities=vilt_names.shape(weights, "token_type_embeddings.weight", 2)[0],
        layers=layers,
        rates=rates,
        heads={task: _head(weights, task, name) for task, name in found.items()},
    )


def usual(task: PairTask, depth: int) -> Reduction:
    """How PuMer reduces for a task, as published, where a checkpoint does not say it."""
    layers = (2, 4, 6, 8) if task == "entail" else (2, 5, 8)
    return Reduction(tuple(layer for layer in layers if layer < depth), (0.1, 0.3, 0.2))


def _head(weights: Mapping[str, Tensor], task: PairTask, name: str) -> HeadConfig:
    if f"{name}.weight" in weights:
        classes, hidden = vilt_names.shape(weights, f"{name}.weight", 2)[0], 0
    else:
        classes = vilt_names.shape(weights, f"{name}.3.weight", 2)[0]
        hidden = vilt_names.shape(weights, f"{name}.0.weight", 2)[0]
    # Answers are trained each by itself, and a rank is no choice between classes.
    alone = task == "vqa" or classes == 1
    return HeadConfig(classes=classes, hidden=hidden, scores="sigmoid" if alone else "softmax")


def _labels(task: PairTask, head: HeadConfig) -> tuple[str, ...]:
    """The published order."""
    if task == "match" and head.classes == 1:
        return ()
    if len(LABELS[task]) != head.classes:
        raise CheckpointError(f"{head.classes} classes to {task}, not {len(LABELS[task])}")
    return LABELS[task]
