"""ViLT as a Hugging Face folder: question answering, two-image reasoning, retrieval.

PuMer's folders look alike from outside, and go to `vilt_official`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    load_weights,
    network_config,
    rename,
)
from tokenfold.models.checkpoints.files import folder_weights, read_json
from tokenfold.models.checkpoints.pair_heads import LABELS
from tokenfold.models.checkpoints.weight_names import without
from tokenfold.models.vilt import Vilt, ViltConfig

CONFIG = "config.json"

# In old files, or parts of the network that the tasks never use.
UNUSED = ("vilt.embeddings.text_embeddings.position_ids",)


class Settings(BaseModel):
    """What in `config.json` changes the result, with the defaults of `transformers`."""

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
    """Whether a `config.json` is that of a ViLT."""
    return config.get("model_type") == "vilt" or any(
        name.startswith("ViltFor") for name in _architectures(config)
    )


def load(folder: Path, name: str) -> PairCheckpoint:
    """Read a folder that `save_pretrained` wrote, of Hugging Face's classes or of PuMer's.

    Images keep their shape, and their patches their order; all are used, whatever the
    configuration's `max_image_length`, where the published code draws some at random.

    Args:
        name: what the checkpoint was asked for as.

    Raises:
        CheckpointError: another architecture, a setting that is not supported, or weights that do
            not fit; the message names it.
    """
    config = read_json(folder / CONFIG)
    weights = folder_weights(folder)
    if vilt_official.recognises(weights):
        return vilt_official.from_folder(folder, config, weights, name)
    where = str(folder / CONFIG)
    settings = _settings(config, where)
    task, head = _task(config, settings, where)
    weights = without(weights, UNUSED)
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
            layers=vilt_official.usual(task, settings.num_hidden_layers).layers,
            heads={task: pair_heads.config(weights, task, head)},
        )
        layout = vilt_names.huggingface(network, head)
        model = Vilt(network)
        load_weights(model, vilt_names.fold(rename(weights, layout)), layout)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return PairCheckpoint(
        model.eval(),
        processors.read_vilt(folder, network.image_size, network.patch_size),
        {task: _labels(config, task, network.heads[task].classes, folder)},
        tokenizer.find(folder, vilt_official.TOKENIZER_OF, network.most_text, network.vocabulary),
        weighted=True,
    )


def _architectures(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [str(name) for name in named] if isinstance(named, list) else []


def _settings(config: Mapping[str, Any], where: str) -> Settings:
    if config.get("quantization_config"):
        raise CheckpointError(f"{where}: quantised weights are not supported")
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{where}: {at}: {problem['msg']}") from error
    for field, supported in (("hidden_act", "gelu"), ("qkv_bias", True), ("num_channels", 3)):
        if getattr(settings, field) != supported:
            raise CheckpointError(
                f"{where}: {field} is {getattr(settings, field)!r}; supported is {supported!r}"
            )
    return settings


def _task(config: Mapping[str, Any], settings: Settings, where: str) -> tuple[PairTask, str]:
    """The task of the architecture, and what its head is called."""
    for name in _architectures(config):
        if name == "ViltForQuestionAnswering":
            return "vqa", "classifier"
        if name == "ViltForImageAndTextRetrieval":
            return "match", "rank_output"
        if name == "ViltForImagesAndTextClassification":
            if settings.num_images == 2:
                return "reason", "classifier"
            names = config.get("id2label")
            found = set(names.values()) if isinstance(names, dict) else set()
            if settings.num_images == 1 and {str(label).lower() for label in found} == set(
                LABELS["entail"]
            ):
                return "entail", "classifier"
            raise CheckpointError(
                f"{where}: a classifier of {settings.num_images} images; supported are two, or one "
                f"with the labels {', '.join(LABELS['entail'])}"
            )
    found_names = ", ".join(_architectures(config)) or "none"
    raise CheckpointError(
        f"{where}: the architecture is {found_names}; supported of ViLT are "
        "ViltForQuestionAnswering, ViltForImagesAndTextClassification, ViltForImageAndTextRetrieval"
    )


def _labels(
    config: Mapping[str, Any], task: PairTask, classes: int, folder: Path
) -> tuple[str, ...]:
    if task == "match":
        return ()
    given = answers.of_config(config, classes, str(folder / CONFIG))
    if task == "vqa":
        return given or answers.beside(folder, classes, alphabetical=False)
    # Without names, by the convention of NLVR2; there the second class is yes.
    labels = tuple(name.lower() for name in given or LABELS[task])
    wanted = LABELS[task]
    if len(labels) != classes or set(labels) != set(wanted):
        raise CheckpointError(f"{folder / CONFIG}: {labels} are not the labels to {task}: {wanted}")
    if task == "reason" and labels != wanted:
        raise CheckpointError(
            f"{folder / CONFIG}: the labels {labels} have to be in order {wanted}"
        )
    return labels
