"""Checkpoints that the loaders return, the error that they raise, and configuration checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import TextEncoder
from tokenfold.models.networks.dual import DualEncoder
from tokenfold.models.networks.meter import Meter
from tokenfold.models.networks.vilt import Vilt
from tokenfold.models.networks.vit import VisionConfig, VisionTransformer

Config = TypeVar("Config", bound=BaseModel)


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded; the message names the file and the problem."""


class Checkpoint(NamedTuple):
    """An image classifier in evaluation mode, with its pre-processing and labels."""

    model: VisionTransformer
    preprocess: Preprocess
    labels: tuple[str, ...]


class PairCheckpoint(NamedTuple):
    """A vision-language network in evaluation mode, with its pre-processing, labels and tokenizer.

    Attributes:
        labels: by task, in the order of the logits; empty for a ranking head. `reason` has `false`
            and `true`; of the two classes of `match`, the second is the match.
        weighted: default way to merge tokens, see `FusionInputs`.
    """

    model: Vilt | Meter
    preprocess: Preprocess
    labels: dict[PairTask, tuple[str, ...]]
    text: TextEncoder
    weighted: bool


class DualCheckpoint(NamedTuple):
    """A dual encoder in evaluation mode, with its pre-processing and tokenizer.

    Attributes:
        template: text of a label, which replaces `{}`.
    """

    model: DualEncoder
    preprocess: Preprocess
    text: TextEncoder
    template: str


AnyCheckpoint = Checkpoint | PairCheckpoint | DualCheckpoint


def vision_config(where: str, **fields: Any) -> VisionConfig:
    """Return the configuration of an image classifier; see `network_config`."""
    return network_config(VisionConfig, where, **fields)


def network_config(kind: type[Config], where: str, **fields: Any) -> Config:
    """Return the configuration of the network that a checkpoint describes.

    Args:
        where: start of the message, such as the file.

    Raises:
        CheckpointError: the fields contradict each other.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        raise CheckpointError(f"{where}: {problems}") from error


def parse_settings(kind: type[Config], content: Mapping[str, Any], where: str) -> Config:
    """Validate the content of a configuration file.

    Args:
        where: start of the message; the path of the invalid field follows.

    Raises:
        CheckpointError: a field is missing or invalid; the message names the first one.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{where}{field}: {problem['msg']}") from error


def positive_integer(config: Mapping[str, Any], key: str, where: str) -> int | None:
    """Return a field of a configuration file; None if it is missing or null.

    Raises:
        CheckpointError: the field is not a positive integer.
    """
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{where}: {key} is {value!r}; it must be a positive integer")
    return value


def architecture_names(config: Mapping[str, Any]) -> list[str]:
    """Return the `architectures` of a Hugging Face `config.json`; empty if there are none."""
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def numbered_labels(classes: int) -> tuple[str, ...]:
    """Return the labels of classes without names: `LABEL_0`, `LABEL_1` and so on."""
    return tuple(f"LABEL_{index}" for index in range(classes))
