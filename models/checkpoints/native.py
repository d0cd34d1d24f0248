"""Our own checkpoint folder: `tokenfold.json` beside `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file

from models.checkpoints.checkpoint import Checkpoint, CheckpointError, load_weights
from models.preprocess import Preprocess
from models.vit import VisionConfig, VisionTransformer

DESCRIPTION = "tokenfold.json"
WEIGHTS = "model.safetensors"


class Description(BaseModel):
    """The content of `tokenfold.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    network: VisionConfig
    preprocess: Preprocess
    labels: tuple[str, ...]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the folder; an earlier checkpoint in it is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    model = checkpoint.model
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    description = Description(
        network=model.config, preprocess=checkpoint.preprocess, labels=checkpoint.labels
    )
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n")


def load(folder: Path) -> Checkpoint:
    """Read a folder that `save` wrote.

    Raises:
        CheckpointError: the description or the weights are not valid.
    """
    try:
        text = (folder / DESCRIPTION).read_text()
        description = Description.model_validate_json(text)
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: {error}") from error
    model = VisionTransformer(description.network)
    load_weights(model, load_file(folder / WEIGHTS))
    return Checkpoint(model.eval(), description.preprocess, description.labels)
