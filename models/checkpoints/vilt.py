"""Loader of ViLT from Hugging Face folders: question answering, reasoning on two images, retrieval.

PuMer's folders have the same files; they are passed on to `vilt_official`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tokenfold.bundle.tasks import PairTask
from tokenfold.models.checkpoints import (
    answers,
    pair_heads,
    processors,
    tokenizer,
    vilt_names,
    vilt_official,
)
from tokenfold.models.checkpoints.checkpoint import (
    CheckpointError,
    PairCheckpoint,
    architecture_names,
    network_config,
    parse_settings,
)
from tokenfold.models.checkpoints.files import folder_weights, read_json
from tokenfold.models.checkpoints.pair_heads import LABELS
from tokenfold.models.checkpoints.weights import load_weights, rename, without_prefixes
from tokenfold.models.networks.vilt import Vilt, ViltConfig

CONFIG = "config.json"

# Present in old files.
UNUSED = ("vilt.embeddings.text_embeddings.position_ids",)


class ViltSettings(BaseModel):
    """Fields of `config.json` that change the result, with the defaults of `transformers`."""

    model_config = ConfigDict(extra="ignore")

    hidden_size: int = Field(default=768, ge=1)
    num_hidden_layers: int = Field(default=12, ge=1)
    num_attention_heads: int = Field(default=12, ge=1)
    intermediate_size: int = Field(default=3072, ge=1)
    hidden_act: str = "gelu"
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    image_size: int = Field(default=384, ge=1)
    patch_size: int = Field(default=32, ge=1)
    num_channels: int = 3
    qkv_bias: bool = True
    vocab_size: int = Field(default=30522, ge=1)
    max_position_embeddings: int = Field(default=40, ge=1)
    modality_type_vocab_size: int = 2
    num_images: int = -1


def recognises(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a ViLT."""
    return config.get("model_type") == "vilt" or any(
        name.startswith("ViltFor") for name in architecture_names(config)
    )


def load(folder: Path, name: str) -> PairCheckpoint:
    """Load a folder that `save_pretrained` of Hugging Face's or PuMer's classes wrote.

    Images keep their aspect ratio. All patches are used, in order; the published code draws at most
    `max_image_length` of them at random.

    Args:
        name: name of the checkpoint.

    Raises:
        CheckpointError: the architecture or a setting is not supported, or the weights do not fit.
    """
    config = read_json(folder / CONFIG)
    weights = folder_weights(folder)
    if vilt_official.recognises(weights):
        return vilt_official.from_folder(folder, config, weights, name)
    where = str(folder / CONFIG)
    settings = _settings(config, where)
    task, head = _task(config, settings, where)
    weights = without_prefixes(weights, UNUSED)
    try:
        network = network_config(
            ViltConfig,
            where,
            image_size=(settings.image_size,) * 2,
            patch_size=settings.patch_size,
            dim=settings.hidden_size,
            depth=settings.num_hidden_layers,
            heads_per_layer=settings.num_attention_heads,
            mlp_dim=settings.intermediate_size,
            eps=settings.layer_norm_eps,
            text_eps=settings.layer_norm_eps,
            vocabulary=settings.vocab_size,
            most_text=settings.max_position_embeddings,
            modalities=settings.modality_type_vocab_size,
            layers=vilt_official.default_reduction(task, settings.num_hidden_layers).layers,
            heads={task: pair_heads.head_config(weights, task, head)},
        )
        names = vilt_names.huggingface(network, head)
        model = Vilt(network)
        load_weights(model, vilt_names.fold(rename(weights, names)), names)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return PairCheckpoint(
        model.eval(),
        processors.read_vilt(folder, network.image_size, network.patch_size),
        {task: _labels(config, task, network.heads[task].classes, folder)},
        tokenizer.find(folder, vilt_official.TOKENIZER_OF, network.most_text, network.vocabulary),
        weighted=True,
    )


def _settings(config: Mapping[str, Any], where: str) -> ViltSettings:
    if config.get("quantization_config"):
        raise CheckpointError(f"{where}: quantised weights are not supported")
    settings = parse_settings(ViltSettings, config, f"{where}: ")
    for field, supported in (("hidden_act", "gelu"), ("qkv_bias", True), ("num_channels", 3)):
        if getattr(settings, field) != supported:
            raise CheckpointError(
                f"{where}: {field} is {getattr(settings, field)!r}; supported is {supported!r}"
            )
    return settings


def _task(config: Mapping[str, Any], settings: ViltSettings, where: str) -> tuple[PairTask, str]:
    """Return the task of the architecture, and the name of its head."""
    for name in architecture_names(config):
        if name == "ViltForQuestionAnswering":
            return "vqa", "classifier"
        if name == "ViltForImageAndTextRetrieval":
            return "match", "rank_output"
        if name == "ViltForImagesAndTextClassification":
            if settings.num_images == 2:
                return "reason", "classifier"
            names = config.get("id2label")
            labels = names.values() if isinstance(names, dict) else ()
            if settings.num_images == 1 and {str(label).lower() for label in labels} == set(
                LABELS["entail"]
            ):
                return "entail", "classifier"
            raise CheckpointError(
                f"{where}: num_images is {settings.num_images}; supported are 2, or 1 with the "
                f"labels {', '.join(LABELS['entail'])}"
            )
    architectures = ", ".join(architecture_names(config)) or "none"
    raise CheckpointError(
        f"{where}: the architecture is {architectures}; supported are ViltForQuestionAnswering, "
        "ViltForImagesAndTextClassification, ViltForImageAndTextRetrieval"
    )


def _labels(
    config: Mapping[str, Any], task: PairTask, classes: int, folder: Path
) -> tuple[str, ...]:
    if task == "match":
        return ()
    names = answers.from_config(config, classes, str(folder / CONFIG))
    if task == "vqa":
        return names or answers.from_folder(folder, classes, alphabetical=False)
    # Without names, NLVR2's convention applies: the second class is true.
    labels = tuple(name.lower() for name in names or LABELS[task])
    expected = LABELS[task]
    if len(labels) != classes or set(labels) != set(expected):
        raise CheckpointError(
            f"{folder / CONFIG}: the labels of {task} are {labels}; they must be {expected}"
        )
    if task == "reason" and labels != expected:
        raise CheckpointError(
            f"{folder / CONFIG}: the labels of {task} are {labels}; their order must be {expected}"
        )
    return labels
