"""Hugging Face folders of image classifiers: `config.json`, `preprocessor_config.json`, weights.

The configuration is read without `transformers`; `classifiers` lists the architectures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.checkpoints import processors
from tokenfold.models.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    architecture_names,
    numbered_labels,
    parse_settings,
    vision_config,
)
from tokenfold.models.checkpoints.classifiers import (
    ACTIVATIONS,
    CLASSIFIERS,
    Classifier,
    ClassifierSettings,
)
from tokenfold.models.checkpoints.files import folder_weights, read_json
from tokenfold.models.checkpoints.weights import (
    load_weights,
    rename,
    resize_positions,
    without_prefixes,
)
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer

CONFIG = "config.json"


def load(folder: Path) -> Checkpoint:
    """Read a folder that `save_pretrained` of a supported classifier wrote.

    Raises:
        CheckpointError: the architecture or a setting is not supported, or the weights do not fit.
    """
    config = read_json(folder / CONFIG)
    classifier = _classifier(config, folder)
    settings = _settings(config, classifier, folder)
    preprocess = processors.read(folder, classifier.processor, settings.size)
    weights = without_prefixes(folder_weights(folder), classifier.unused)
    classifiers = [key for key in weights if key.endswith("classifier.weight")]
    if not classifiers or weights[classifiers[0]].ndim != 2:
        raise CheckpointError(f"{folder}: the weights have no classifier (classifier.weight)")
    classes = weights[classifiers[0]].shape[0]
    labels = _labels(config, classes, folder)
    network = _network(settings, classifier, preprocess, classes, folder)
    names = classifier.names(network)
    try:
        ours = rename(weights, names)
        _reshape(ours, settings, network)
        model = VisionTransformer(network)
        load_weights(model, ours, names)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Checkpoint(model.eval(), preprocess, labels)


def _classifier(config: dict[str, Any], folder: Path) -> Classifier:
    names = architecture_names(config)
    for name in names:
        if name in CLASSIFIERS:
            if config.get("quantization_config"):
                raise CheckpointError(f"{folder / CONFIG}: quantised weights are not supported")
            return CLASSIFIERS[name]
    raise CheckpointError(
        f"{folder / CONFIG}: the architecture is {', '.join(names) or 'none'}; supported are "
        f"{', '.join(CLASSIFIERS)}"
    )


def _settings(config: dict[str, Any], classifier: Classifier, folder: Path) -> ClassifierSettings:
    if classifier.processor == "clip":
        parts = [config.get(key) or {} for key in ("vision_config", "vision_config_dict")]
        if not all(isinstance(part, dict) for part in parts):
            raise CheckpointError(f"{folder / CONFIG}: vision_config is not an object")
        config = {**parts[0], **parts[1]}
    settings = parse_settings(
        ClassifierSettings, {**classifier.defaults, **config}, f"{folder / CONFIG}: "
    )
    if settings.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"{folder / CONFIG}: hidden_act is {settings.hidden_act!r}; supported are "
            f"{', '.join(ACTIVATIONS)}"
        )
    return settings


def _network(
    settings: ClassifierSettings,
    classifier: Classifier,
    preprocess: Preprocess,
    classes: int,
    folder: Path,
) -> VisionConfig:
    fields = {
        "image_size": preprocess.size,
        "patch_size": settings.square_patch(str(folder / CONFIG)),
        "dim": settings.hidden_size,
        "depth": settings.num_hidden_layers,
        "heads": settings.num_attention_heads,
        "mlp_dim": settings.intermediate_size,
        "classes": classes,
        "activation": ACTIVATIONS[settings.hidden_act],
        "qkv_bias": settings.qkv_bias,
        "eps": settings.layer_norm_eps,
    }
    return vision_config(str(folder / CONFIG), **{**fields, **classifier.network(settings)})


def _labels(config: dict[str, Any], classes: int, folder: Path) -> tuple[str, ...]:
    names = config.get("id2label")
    if names is None:
        return numbered_labels(classes)
    ids = [str(index) for index in range(classes)]
    if not isinstance(names, dict) or sorted(names) != sorted(ids):
        raise CheckpointError(f"{folder / CONFIG}: id2label must name classes 0 to {classes - 1}")
    return tuple(str(names[index]) for index in ids)


def _reshape(
    weights: dict[str, Tensor], settings: ClassifierSettings, network: VisionConfig
) -> None:
    """Reshape CLIP's vectors to our shapes, and resize positions to the size of the images."""
    dim = network.dim
    if weights["cls_token"].shape == (dim,):
        weights["cls_token"] = weights["cls_token"].view(1, 1, dim)
    if weights["pos_embed"].ndim == 2:
        weights["pos_embed"] = weights["pos_embed"].unsqueeze(0)
    if network.image_size != settings.size and weights["pos_embed"].ndim == 3:
        weights["pos_embed"] = resize_positions(
            weights["pos_embed"], network.protected, network.grid
        )
