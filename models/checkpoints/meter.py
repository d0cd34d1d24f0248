"""METER: the official files, and PuMer's folders.

Which of the two it is says what form the network was trained in, and the names of the weights show
it: official files keep the image tower under `vit_model.visual`, PuMer's keep all but the heads
under `meter.`, and the image tower there right under `vit_model`. What mixes the two is refused,
unless a `config.json` beside the weights says `"form": "parallel"` or `"form": "sequential"`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
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
    weight_names,
)
from tokenfold.models.checkpoints.checkpoint import (
    CheckpointError,
    PairCheckpoint,
    load_weights,
    network_config,
    rename,
)
from tokenfold.models.checkpoints.files import folder_weights, read_json
from tokenfold.models.checkpoints.processors import CLIP_MEAN, CLIP_STD
from tokenfold.models.checkpoints.pumer import Reduction
from tokenfold.models.checkpoints.weight_names import without
from tokenfold.models.cross import Form
from tokenfold.models.meter import Meter, MeterConfig

CONFIG = "config.json"
TOKENIZER_OF = "FacebookAI/roberta-base"

SUPPORTED = "supported is the METER of CLIP's ViT and RoBERTa, no Swin"
MARK = "cross_modal_text_transform.weight"
PREFIX = "meter."  # of all but the heads, in PuMer's files
FORMS: dict[str, Form] = {"parallel": "parallel", "sequential": "sequential"}

# Parts of the towers that METER never runs.
UNUSED = (
    "token_pruner.", "text_transformer.pooler.",
    "text_transformer.embeddings.position_ids", "vit_model.token_embedding.",
    "vit_model.positional_embedding", "vit_model.ln_final.",
)  # fmt: skip
# Published configurations were trained with texts of so many tokens; retrieval with fewer.
MOST_TEXT, MOST_TEXT_OF_RETRIEVAL = 50, 40
MOST_TEXT_OF_PUMER = 40


class _Trained(NamedTuple):
    """How a checkpoint was trained, as far as the weights do not say it.

    Attributes:
        reduction: None if without PuMer.
        heads_per_layer: None if as usual at the width.
    """

    form: Form
    reduction: Reduction | None
    heads_per_layer: int | None
    most_text: int


def recognises(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a METER."""
    return MARK in weights or PREFIX + MARK in weights


def recognises_config(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a METER."""
    return config.get("model_type") == "meter"


def from_weights(weights: Mapping[str, Tensor], file: Path) -> PairCheckpoint:
    """A file; answers, a tokenizer and a `config.json` are looked for beside it.

    Raises:
        CheckpointError: the weights fit no such network; the message says why.
    """
    try:
        beside = file.parent / CONFIG
        config = read_json(beside) if beside.is_file() else {}
        return _load(weights, config if "form" in config else {}, file.parent, file.name)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def load(folder: Path, name: str) -> PairCheckpoint:
    """Read a folder of PuMer's; what was trained without reduction (`-ft`) gets the usual one.

    Args:
        name: what the checkpoint was asked for as; it may say how it reduces.

    Raises:
        CheckpointError: the weights fit no such network, or it reduces in an unknown way.
    """
    try:
        return _load(folder_weights(folder), read_json(folder / CONFIG), folder, name)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def form_of(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Form:
    """The form that a checkpoint was trained in, see above.

    Raises:
        CheckpointError: neither its names nor its configuration say it.
    """
    given = config.get("form")
    if given is not None:
        if given not in FORMS:
            raise CheckpointError(f"{CONFIG}: form is {given!r}; there are {', '.join(FORMS)}")
        return FORMS[given]
    prefixed = all(key.startswith(PREFIX) for key in weights if "cross_modal_" in key)
    plain = not any(key.startswith(PREFIX) for key in weights)
    nested = any(".visual." in key for key in weights)
    if plain and nested and not recognises_config(config):
        return "parallel"
    if prefixed and not nested:
        return "sequential"
    raise CheckpointError(
        "the names of the weights are neither those of the official code (parallel text and image "
        f"layers) nor those of PuMer's (sequential). Say which it is in a {CONFIG} beside them: "
        '"form": "parallel" or "form": "sequential"'
    )


def published_rates(prune: float, merge: float, text: float) -> Rates:
    """What PuMer's METER makes of the rates of its configuration.

    Without pruning it reduces nothing; without merging it leaves the image alone.
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
    pumers = trained.form == "sequential"
    usual = str(config.get("tokenizer") or TOKENIZER_OF)
    return PairCheckpoint(
        model,
        preprocess(network, stretched=pumers),
        pair_heads.labels(network.heads, config, folder, alphabetical=pumers),
        tokenizer.find(folder, usual, network.most_text, network.vocabulary),
        weighted=trained.reduction is None,
    )


def preprocess(network: MeterConfig, *, stretched: bool) -> Preprocess:
    """The published pre-processing: PuMer stretches images, the official code crops them."""
    height, width = network.image_size
    colours: dict[str, Any] = {"interpolation": "bicubic", "mean": CLIP_MEAN, "std": CLIP_STD}
    if stretched or height != width:
        return Preprocess(size=(height, width), **colours)
    return Preprocess(size=(height, width), resize="shorter", shorter_side=height, **colours)


def _trained(weights: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> _Trained:
    form = form_of(weights, config)
    heads = config.get("num_heads")
    if heads is not None and (not isinstance(heads, int) or heads < 1):
        raise CheckpointError(f"{CONFIG}: num_heads is {heads!r}, no number of heads")
    usual = MOST_TEXT_OF_PUMER if form == "sequential" else MOST_TEXT
    if form == "parallel" and "rank_output.weight" in weights:
        usual = MOST_TEXT_OF_RETRIEVAL
    most_text = config.get("max_text_len", usual)
    if not isinstance(most_text, int) or most_text < 1:
        raise CheckpointError(f"{CONFIG}: max_text_len is {most_text!r}, no number of tokens")
    if "bert" in str(config.get("tokenizer", "")) and "roberta" not in str(config["tokenizer"]):
        raise CheckpointError(f"{CONFIG}: tokenizer is {config['tokenizer']}; supported is RoBERTa")
    reduction = _reduction(config, name) if form == "sequential" else None
    return _Trained(form, reduction, heads, most_text)


def _reduction(config: Mapping[str, Any], name: str) -> Reduction | None:
    """By step: PuMer counts two layers a step, and can reduce in each first one."""
    # PuMer's METER has one way to score and to merge, whatever its configuration says.
    found = pumer.read({**config, "sim_method": "mean_head", "merge_style": "tome"}, name, CONFIG)
    if found is None:
        return None
    steps = tuple(layer // 2 for layer in found.layers if layer % 2 == 0)
    rates = published_rates(*found.rates)
    return Reduction(steps, rates) if steps and any(rates) else None


def _model(weights: Mapping[str, Tensor], trained: _Trained) -> Meter:
    tasks = pair_heads.find(weights)
    plain = {_official(key): tensor for key, tensor in weights.items()}
    plain = without(plain, (*UNUSED, *pair_heads.unused(tasks)))
    network = _network(plain, tasks, trained)
    layout = meter_names.official(network, tasks)
    model = Meter(network)
    load_weights(model, meter_names.fold(rename(plain, layout), network), layout)
    return model.eval()


def _official(key: str) -> str:
    """The official name of a weight."""
    if not key.startswith(PREFIX):
        return key
    key = key.removeprefix(PREFIX)
    if key.startswith("vit_model.") and not key.startswith("vit_model.visual."):
        return "vit_model.visual." + key.removeprefix("vit_model.")
    return key


def _network(
    weights: Mapping[str, Tensor], tasks: Mapping[PairTask, str], trained: _Trained
) -> MeterConfig:
    shape = partial(weight_names.shape, otherwise=SUPPORTED)
    dim, channels, patch, width = shape(weights, "vit_model.visual.conv1.weight", 4)
    if channels != 3 or patch != width:
        raise CheckpointError("vit_model.visual.conv1 has no square patches of 3 channels")
    positions = shape(weights, "vit_model.visual.positional_embedding", 2)[0] - 1
    side = math.isqrt(max(positions, 0))
    if side == 0 or side * side != positions:
        raise CheckpointError(
            f"vit_model.visual.positional_embedding has {positions} patches, which form no square"
        )
    heads = trained.heads_per_layer or architectures.heads_of(dim)
    if heads is None:
        raise CheckpointError(f"how many heads share a width of {dim} is not known")
    depth = _depth(weights, "cross_modal_text_layers")
    layers, rates = trained.reduction or usual(next(iter(tasks)), depth)
    block = "vit_model.visual.transformer.resblocks"
    return network_config(
        MeterConfig,
        "the network",
        form=trained.form,
        # What PuMer trained has learnt to do without.
        protect_class=trained.reduction is None,
        image_size=(side * patch, side * patch),
        patch_size=patch,
        dim=dim,
        heads_per_layer=heads,
        mlp_dim=shape(weights, f"{block}.0.mlp.c_fc.weight", 2)[0],
        depth=depth,
        vision_depth=_depth(weights, block),
        text_depth=_depth(weights, "text_transformer.encoder.layer"),
        vocabulary=shape(weights, "text_transformer.embeddings.word_embeddings.weight", 2)[0],
        most_text=trained.most_text,
        modalities=shape(weights, "token_type_embeddings.weight", 2)[0],
        layers=layers,
        rates=rates,
        heads={task: pair_heads.config(weights, task, name) for task, name in tasks.items()},
    )


def usual(task: PairTask, depth: int) -> Reduction:
    """How PuMer reduces for a task, as published, where a checkpoint does not say it."""
    first, rates = {
        "entail": (0, (0.3, 0.5, 0.2)),
        "reason": (1, (0.3, 0.5, 0.2)),
    }.get(task, (0, (0.2, 0.2, 0.2)))
    return Reduction(tuple(range(first, min(4, depth))) or (0,), rates)


def _depth(weights: Mapping[str, Tensor], layers: str) -> int:
    layer = re.compile(re.escape(layers) + r"\.(\d+)\.")
    return len({found[1] for key in weights if (found := layer.match(key))})
