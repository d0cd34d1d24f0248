"""Hugging Face folders of image classifiers: `config.json`, `preprocessor_config.json`, weights.

The configuration is read without `transformers`; `families` says what each architecture is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.checkpoints import positions, processors
from tokenfold.models.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_weights,
    rename,
    vision_config,
)
from tokenfold.models.checkpoints.families import ACTIVATIONS, FAMILIES, Family, Settings
from tokenfold.models.checkpoints.files import folder_weights, read_json
from tokenfold.models.vit import VisionConfig, VisionTransformer

CONFIG = "config.json"


def load(folder: Path) -> Checkpoint:
    """Read a folder that `save_pretrained` of a supported classifier wrote.

    Raises:
        CheckpointError: another architecture, a setting that is not supported, or weights that do
            not fit; the message names it.
    """
    config = read_json(folder / CONFIG)
    family = FAMILIES[_architecture(config, folder)]
    settings = _settings(config, family, folder)
    preprocess = processors.read(folder, family.kind, settings.size)
    weights = {
        key: tensor
        for key, tensor in folder_weights(folder).items()
        if not key.startswith(family.unused)
    }
    classifiers = [key for key in weights if key.endswith("classifier.weight")]
    if not classifiers or weights[classifiers[0]].ndim != 2:
        raise CheckpointError(f"{folder}: the weights have no classifier (classifier.weight)")
    classes = weights[classifiers[0]].shape[0]
    labels = _labels(config, classes, folder)
    network = _network(settings, family, preprocess, classes, folder)
    layout = family.names(network)
    try:
        ours = rename(weights, layout)
        _shape(ours, settings, network)
        model = VisionTransformer(network)
        load_weights(model, ours, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Checkpoint(model.eval(), preprocess, labels)


def _architecture(config: dict[str, Any], folder: Path) -> str:
    named = config.get("architectures")
    names = named if isinstance(named, list) else []
    for name in names:
        if name in FAMILIES:
            if config.get("quantization_config"):
                raise CheckpointError(f"{folder / CONFIG}: quantised weights are not supported")
            return str(name)
    found = ", ".join(str(name) for name in names) or "none"
    raise CheckpointError(
        f"{folder / CONFIG}: the architecture is {found}; supported are {', '.join(FAMILIES)}"
    )


def _settings(config: dict[str, Any], family: Family, folder: Path) -> Settings:
    if family.kind == "clip":
        parts = [config.get(key) or {} for key in ("vision_config", "vision_config_dict")]
        if not all(isinstance(part, dict) for part in parts):
            raise CheckpointError(f"{folder / CONFIG}: vision_config is no object")
        config = {**parts[0], **parts[1]}
    try:
        settings = Settings.model_validate({**family.defaults, **config})
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{folder / CONFIG}: {at}: {problem['msg']}") from error
    if settings.num_channels != 3:
        raise CheckpointError(
            f"{folder / CONFIG}: num_channels is {settings.num_channels}, but images have 3"
        )
    if settings.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"{folder / CONFIG}: hidden_act is {settings.hidden_act!r}; supported are "
            f"{', '.join(ACTIVATIONS)}"
        )
    return settings


def _network(
    settings: Settings, family: Family, preprocess: Preprocess, classes: int, folder: Path
) -> VisionConfig:
    patch = settings.patch_size
    if not isinstance(patch, int):
        if patch[0] != patch[1]:
            raise CheckpointError(f"{folder / CONFIG}: patches are square, not {patch}")
        patch = patch[0]
    fields = {
        "image_size": preprocess.size,
        "patch_size": patch,
        "dim": settings.hidden_size,
        "depth": settings.num_hidden_layers,
        "heads": settings.num_attention_heads,
        "mlp_dim": settings.intermediate_size,
        "classes": classes,
        "activation": ACTIVATIONS[settings.hidden_act],
        "qkv_bias": settings.qkv_bias,
        "eps": settings.layer_norm_eps,
    }
    return vision_config(str(folder / CONFIG), **{**fields, **family.network(settings)})


def _labels(config: dict[str, Any], classes: int, folder: Path) -> tuple[str, ...]:
    names = config.get("id2label")
    if names is None:
        return tuple(f"LABEL_{index}" for index in range(classes))
    wanted = [str(index) for index in range(classes)]
    if not isinstance(names, dict) or sorted(names) != sorted(wanted):
        raise CheckpointError(f"{folder / CONFIG}: id2label has to name classes 0 to {classes - 1}")
    return tuple(str(names[index]) for index in wanted)


def _shape(weights: dict[str, Tensor], settings: Settings, network: VisionConfig) -> None:
    """Bring CLIP's vectors into the common form, and positions to the size of the images."""
    dim = network.dim
    if weights["cls_token"].shape == (dim,):
        weights["cls_token"] = weights["cls_token"].view(1, 1, dim)
    if weights["pos_embed"].ndim == 2:
        weights["pos_embed"] = weights["pos_embed"].unsqueeze(0)
    if network.image_size != settings.size and weights["pos_embed"].ndim == 3:
        weights["pos_embed"] = positions.resize(
            weights["pos_embed"], network.protected, network.grid
        )
