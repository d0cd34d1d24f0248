"""Loader of METER: the official files, and PuMer's folders.

The source determines the form that the network was trained in, and the names of the weights show
the source. Official files keep the image tower under `vit_model.visual`. PuMer's files keep
everything except the heads under `meter.`, with the image tower directly under `vit_model`. A mix
of both is rejected unless a `config.json` beside the weights has `"form": "parallel"` or
`"form": "sequential"`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tokenfold.bundle.pair_workload import Rates
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.models.checkpoints import (
    architectures,
    meter_names,
    pair_heads,
    pumer,
    tokenizer,
)
from tokenfold.models.checkpoints.checkpoint import (
    CheckpointError,
    PairCheckpoint,
    network_config,
    positive_integer,
)
from tokenfold.models.checkpoints.files import folder_weights, read_json
from tokenfold.models.checkpoints.processors import CLIP_MEAN, CLIP_STD
from tokenfold.models.checkpoints.pumer import PuMerReduction
from tokenfold.models.checkpoints.weights import (
    load_weights,
    patch_shape,
    rename,
    square_side,
    weight_shape,
    without_prefixes,
)
from tokenfold.models.networks.cross import Form
from tokenfold.models.networks.meter import Meter, MeterConfig

CONFIG = "config.json"
TOKENIZER_OF = "FacebookAI/roberta-base"

SUPPORTED = "supported is METER with CLIP's ViT and RoBERTa, not with Swin"
MARK = "cross_modal_text_transform.weight"
PREFIX = "meter."  # of all weights but the heads, in PuMer's files
FORMS: dict[str, Form] = {"parallel": "parallel", "sequential": "sequential"}

# Parts of the towers that METER never runs.
UNUSED = (
    "token_pruner.", "text_transformer.pooler.",
    "text_transformer.embeddings.position_ids", "vit_model.token_embedding.",
    "vit_model.positional_embedding", "vit_model.ln_final.",
)  # fmt: skip
# Maximum tokens of the texts that published networks were trained with.
MAX_TEXT, MAX_TEXT_RETRIEVAL, MAX_TEXT_PUMER = 50, 40, 40


class _Trained(NamedTuple):
    """Properties of a checkpoint's training that the weights do not show.

    Attributes:
        reduction: None if trained without PuMer.
        heads_per_layer: None for the usual number at the width.
        most_text: maximum tokens of a text.
    """

    form: Form
    reduction: PuMerReduction | None
    heads_per_layer: int | None
    most_text: int


def recognises(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of a METER."""
    return MARK in weights or PREFIX + MARK in weights


def recognises_config(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a METER."""
    return config.get("model_type") == "meter"


def from_weights(weights: Mapping[str, Tensor], file: Path) -> PairCheckpoint:
    """Load a file, with the answers, the tokenizer and the `config.json` of its folder.

    Raises:
        CheckpointError: the weights do not fit the network.
    """
    try:
        beside = file.parent / CONFIG
        config = read_json(beside) if beside.is_file() else {}
        return _load(weights, config if "form" in config else {}, file.parent, file.name)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def load(folder: Path, name: str) -> PairCheckpoint:
    """Load a folder of PuMer's.

    A network that was trained without reduction (`-ft`) gets the published one for its task.

    Args:
        name: name of the checkpoint, which may tell its reduction.

    Raises:
        CheckpointError: the weights do not fit the network, or its reduction is not supported.
    """
    try:
        return _load(folder_weights(folder), read_json(folder / CONFIG), folder, name)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def form_of(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Form:
    """Return the form that a checkpoint was trained in, see the module's docstring.

    Raises:
        CheckpointError: neither the names of the weights nor the configuration tell the form.
    """
    form = config.get("form")
    if form is not None:
        if form not in FORMS:
            raise CheckpointError(f"{CONFIG}: form is {form!r}; allowed are {', '.join(FORMS)}")
        return FORMS[form]
    prefixed = all(key.startswith(PREFIX) for key in weights if "cross_modal_" in key)
    plain = not any(key.startswith(PREFIX) for key in weights)
    nested = any(".visual." in key for key in weights)
    if plain and nested and not recognises_config(config):
        return "parallel"
    if prefixed and not nested:
        return "sequential"
    raise CheckpointError(
        "the names of the weights are neither those of the official code (parallel text and image "
        f"layers) nor those of PuMer's (sequential); set the form in a {CONFIG} beside them: "
        '"form": "parallel" or "form": "sequential"'
    )


def published_rates(prune: float, merge: float, text: float) -> Rates:
    """Return the shares that PuMer's METER uses, given the rates of its configuration.

    PuMer's METER reduces nothing without pruning, and no image tokens without merging.
    """
    if not prune:
        return 0.0, 0.0, 0.0
    return (prune, merge, text) if merge else (0.0, 0.0, text)


def _load(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path, name: str
) -> PairCheckpoint:
    trained = _trained(weights, config, name)
    model = _model(weights, trained)
    network = model.config
    from_pumer = trained.form == "sequential"
    default_tokenizer = str(config.get("tokenizer") or TOKENIZER_OF)
    return PairCheckpoint(
        model,
        preprocess(network, stretched=from_pumer),
        pair_heads.labels(network.heads, config, folder, alphabetical=from_pumer),
        tokenizer.find(folder, default_tokenizer, network.most_text, network.vocabulary),
        weighted=trained.reduction is None,
    )


def preprocess(network: MeterConfig, *, stretched: bool) -> Preprocess:
    """Return the published pre-processing.

    Args:
        stretched: whether images are stretched, as in PuMer; the official code crops them.
    """
    height, width = network.image_size
    colours: dict[str, Any] = {"interpolation": "bicubic", "mean": CLIP_MEAN, "std": CLIP_STD}
    if stretched or height != width:
        return Preprocess(size=(height, width), **colours)
    return Preprocess(size=(height, width), resize="shorter", shorter_side=height, **colours)


def _trained(weights: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> _Trained:
    form = form_of(weights, config)
    heads = positive_integer(config, "num_heads", CONFIG)
    default = MAX_TEXT_PUMER if form == "sequential" else MAX_TEXT
    if form == "parallel" and "rank_output.weight" in weights:
        default = MAX_TEXT_RETRIEVAL
    most_text = positive_integer(config, "max_text_len", CONFIG) or default
    if "bert" in str(config.get("tokenizer", "")) and "roberta" not in str(config["tokenizer"]):
        raise CheckpointError(f"{CONFIG}: tokenizer is {config['tokenizer']}; supported is RoBERTa")
    reduction = _reduction(config, name) if form == "sequential" else None
    return _Trained(form, reduction, heads, most_text)


def _reduction(config: Mapping[str, Any], name: str) -> PuMerReduction | None:
    """Return the reduction of each pair of layers.

    PuMer numbers the text layer and the image layer of a pair separately, and reduces only in the
    text layers.
    """
    # PuMer's METER ignores the methods of scoring and merging in its configuration.
    reduction = pumer.read(
        {**config, "sim_method": "mean_head", "merge_style": "tome"}, name, CONFIG
    )
    if reduction is None:
        return None
    pairs = tuple(layer // 2 for layer in reduction.layers if layer % 2 == 0)
    rates = published_rates(*reduction.rates)
    return PuMerReduction(pairs, rates) if pairs and any(rates) else None


def _model(weights: Mapping[str, Tensor], trained: _Trained) -> Meter:
    head_names = pair_heads.find_heads(weights)
    plain = {_official(key): tensor for key, tensor in weights.items()}
    plain = without_prefixes(plain, (*UNUSED, *pair_heads.unused_prefixes(head_names)))
    network = _network(plain, head_names, trained)
    names = meter_names.official(network, head_names)
    model = Meter(network)
    load_weights(model, meter_names.fold(rename(plain, names), network), names)
    return model.eval()


def _official(key: str) -> str:
    """Return the official name of a weight."""
    if not key.startswith(PREFIX):
        return key
    key = key.removeprefix(PREFIX)
    if key.startswith("vit_model.") and not key.startswith("vit_model.visual."):
        return "vit_model.visual." + key.removeprefix("vit_model.")
    return key


def _network(
    weights: Mapping[str, Tensor], head_names: Mapping[PairTask, str], trained: _Trained
) -> MeterConfig:
    dim, patch = patch_shape(weights, "vit_model.visual.conv1.weight", SUPPORTED)
    positions = "vit_model.visual.positional_embedding"
    side = square_side(weight_shape(weights, positions, 2, SUPPORTED)[0] - 1, positions)
    heads = trained.heads_per_layer or architectures.heads_of(dim)
    depth = _depth(weights, "cross_modal_text_layers")
    layers, rates = trained.reduction or default_reduction(next(iter(head_names)), depth)
    block = "vit_model.visual.transformer.resblocks"
    return network_config(
        MeterConfig,
        "the network",
        form=trained.form,
        # Networks that were trained with PuMer have learnt to lose the class token.
        protect_class=trained.reduction is None,
        image_size=(side * patch, side * patch),
        patch_size=patch,
        dim=dim,
        heads_per_layer=heads,
        mlp_dim=weight_shape(weights, f"{block}.0.mlp.c_fc.weight", 2)[0],
        depth=depth,
        vision_depth=_depth(weights, block),
        text_depth=_depth(weights, "text_transformer.encoder.layer"),
        vocabulary=weight_shape(weights, "text_transformer.embeddings.word_embeddings.weight", 2)[
            0
        ],
        most_text=trained.most_text,
        modalities=weight_shape(weights, "token_type_embeddings.weight", 2)[0],
        layers=layers,
        rates=rates,
        heads={
            task: pair_heads.head_config(weights, task, name) for task, name in head_names.items()
        },
    )


def default_reduction(task: PairTask, depth: int) -> PuMerReduction:
    """Return PuMer's published reduction for a task."""
    first, rates = {
        "entail": (0, (0.3, 0.5, 0.2)),
        "reason": (1, (0.3, 0.5, 0.2)),
    }.get(task, (0, (0.2, 0.2, 0.2)))
    return PuMerReduction(tuple(range(first, min(4, depth))) or (0,), rates)


def _depth(weights: Mapping[str, Tensor], layers: str) -> int:
    layer = re.compile(re.escape(layers) + r"\.(\d+)\.")
    return len({match[1] for key in weights if (match := layer.match(key))})
