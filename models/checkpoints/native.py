"""Tokenfold's own checkpoint format: a folder with `tokenfold.json` and `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import TOKENIZER, Template, TextEncoder
from tokenfold.models.checkpoints.checkpoint import (
    AnyCheckpoint,
    Checkpoint,
    CheckpointError,
    DualCheckpoint,
    PairCheckpoint,
)
from tokenfold.models.checkpoints.files import read_json, read_weights
from tokenfold.models.checkpoints.weights import load_weights
from tokenfold.models.networks.dual import DualConfig, DualEncoder
from tokenfold.models.networks.meter import Meter, MeterConfig
from tokenfold.models.networks.vilt import Vilt, ViltConfig
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer

DESCRIPTION = "tokenfold.json"
WEIGHTS = "model.safetensors"


class ClassifierDescription(BaseModel):
    """Content of `tokenfold.json` for an image classifier; older files have no `kind`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    kind: Literal["image"] = "image"
    network: VisionConfig
    preprocess: Preprocess
    labels: tuple[str, ...]


class _PairDescription(BaseModel):
    """Content of `tokenfold.json` for a vision-language network; the tokenizer is another file."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    preprocess: Preprocess
    labels: dict[PairTask, tuple[str, ...]]
    weighted: bool


class ViltDescription(_PairDescription):
    """Content of `tokenfold.json` for a ViLT."""

    kind: Literal["vilt"] = "vilt"
    network: ViltConfig


class MeterDescription(_PairDescription):
    """Content of `tokenfold.json` for a METER."""

    kind: Literal["meter"] = "meter"
    network: MeterConfig


class DualDescription(BaseModel):
    """Content of `tokenfold.json` for a dual encoder; the tokenizer is a separate file.

    Attributes:
        padding: id of the padding token, see `TextEncoder`.
        template: see `DualCheckpoint`.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    kind: Literal["dual"] = "dual"
    network: DualConfig
    preprocess: Preprocess
    padding: int | None
    template: Template


AnyDescription = ClassifierDescription | ViltDescription | MeterDescription | DualDescription
DESCRIPTIONS: dict[str, type[AnyDescription]] = {
    "image": ClassifierDescription,
    "vilt": ViltDescription,
    "meter": MeterDescription,
    "dual": DualDescription,
}


def save(folder: Path, checkpoint: AnyCheckpoint) -> None:
    """Write a checkpoint to a folder, replacing an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    model = checkpoint.model
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    fields: dict[str, Any] = {"network": model.config, "preprocess": checkpoint.preprocess}
    kind: type[AnyDescription] = ClassifierDescription
    if isinstance(checkpoint, DualCheckpoint):
        kind = DualDescription
        fields |= {"padding": checkpoint.text.padding, "template": checkpoint.template}
    else:
        fields["labels"] = checkpoint.labels
    if isinstance(checkpoint, PairCheckpoint):
        fields["weighted"] = checkpoint.weighted
        kind = ViltDescription if isinstance(checkpoint.model, Vilt) else MeterDescription
    if not isinstance(checkpoint, Checkpoint):
        checkpoint.text.save(folder / TOKENIZER)
    description = kind.model_validate(fields)
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n")


def load(folder: Path) -> AnyCheckpoint:
    """Read a folder that `save` wrote.

    Raises:
        CheckpointError: the description, the weights or the tokenizer are invalid.
    """
    file = folder / DESCRIPTION
    content = read_json(file)
    kind = content.get("kind", "image")
    if kind not in DESCRIPTIONS:
        raise CheckpointError(f"{file}: kind is {kind!r}; allowed are {', '.join(DESCRIPTIONS)}")
    try:
        # As JSON, in which lists are valid for tuples.
        description = DESCRIPTIONS[kind].model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise CheckpointError(f"{file}: {error}") from error
    weights = read_weights(folder / WEIGHTS)
    try:
        if isinstance(description, ClassifierDescription):
            classifier = VisionTransformer(description.network)
            load_weights(classifier, weights)
            return Checkpoint(classifier.eval(), description.preprocess, description.labels)
        if isinstance(description, DualDescription):
            return _dual(folder, description, weights)
        return _pair(folder, description, weights)
    except ValueError as error:  # also raised for the tokenizer
        raise CheckpointError(f"{folder}: {error}") from error


def _pair(
    folder: Path,
    description: ViltDescription | MeterDescription,
    weights: Mapping[str, Tensor],
) -> PairCheckpoint:
    config = description.network
    if description.labels.keys() != config.heads.keys():
        raise CheckpointError(
            f"labels for {', '.join(description.labels)}, but heads for {', '.join(config.heads)}"
        )
    for task, head in config.heads.items():
        count = len(description.labels[task])
        if count != head.classes and (count or head.classes > 1):
            raise CheckpointError(f"{count} labels for {task}, but {head.classes} logits")
    text = TextEncoder.open(folder / TOKENIZER, config.most_text)
    _check_vocabulary(text, config.vocabulary)
    model = Vilt(config) if isinstance(config, ViltConfig) else Meter(config)
    load_weights(model, weights)
    return PairCheckpoint(
        model.eval(), description.preprocess, description.labels, text, description.weighted
    )


def _dual(
    folder: Path, description: DualDescription, weights: Mapping[str, Tensor]
) -> DualCheckpoint:
    config = description.network
    if config.text.padded != (description.padding is not None):
        raise CheckpointError(
            f"padding is {description.padding}, but the text tower has padded = "
            f"{config.text.padded}; a padded tower needs a padding id, any other none"
        )
    text = TextEncoder.open(folder / TOKENIZER, config.text.most_text, description.padding)
    _check_vocabulary(text, config.text.vocabulary)
    model = DualEncoder(config)
    load_weights(model, weights)
    return DualCheckpoint(model.eval(), description.preprocess, text, description.template)


def _check_vocabulary(text: TextEncoder, vocabulary: int) -> None:
    """Check that the network has all of the tokenizer's words; raise CheckpointError otherwise."""
    if text.vocabulary > vocabulary:
        raise CheckpointError(f"{TOKENIZER} has {text.vocabulary} words, the network {vocabulary}")
