"""What every loader returns and raises, and how weights get into a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import TextEncoder
from tokenfold.models.dual import DualEncoder
from tokenfold.models.meter import Meter
from tokenfold.models.vilt import Vilt
from tokenfold.models.vit import VisionConfig, VisionTransformer

Layout = Mapping[str, tuple[str, ...]]
"""Our name of a weight -> the checkpoint's names of the parts that make it up, in order."""

SHOWN_PROBLEMS = 10

Config = TypeVar("Config", bound=BaseModel)


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as asked; the message says what and where."""


class Checkpoint(NamedTuple):
    """A network with its weights, ready to run, and what surrounds it."""

    model: VisionTransformer
    preprocess: Preprocess
    labels: tuple[str, ...]


class PairCheckpoint(NamedTuple):
    """The same of a network that takes images with texts.

    Attributes:
        labels: by task, in the order of its logits; none for a score by itself. `reason` has
            `false` and `true`; of two classes to `match`, the second is the match.
        weighted: how tokens merge unless the user says otherwise, see `PairNetwork.fuse`.
    """

    model: Vilt | Meter
    preprocess: Preprocess
    labels: dict[PairTask, tuple[str, ...]]
    text: TextEncoder
    weighted: bool


class DualCheckpoint(NamedTuple):
    """The same of two towers, whose vectors of images and texts can be compared.

    Attributes:
        template: what a label becomes a text by, in place of its `{}`.
    """

    model: DualEncoder
    preprocess: Preprocess
    text: TextEncoder
    template: str


AnyCheckpoint = Checkpoint | PairCheckpoint | DualCheckpoint


def vision_config(where: str, **fields: Any) -> VisionConfig:
    """The configuration of an image classifier, see `network_config`."""
    return network_config(VisionConfig, where, **fields)


def network_config(kind: type[Config], where: str, **fields: Any) -> Config:
    """The configuration of a network that a checkpoint describes.

    Raises:
        CheckpointError: the description contradicts itself; starts with `where`.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors())
        raise CheckpointError(f"{where}: {problems}") from error


def rename(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Give weights our names, joining those that are kept in parts (query, key, value).

    Raises:
        CheckpointError: names the weights that are missing, unknown or do not join.
    """
    wanted = {theirs for parts in layout.values() for theirs in parts}
    problems = [f"missing: {key}" for key in wanted if key not in weights]
    problems += [f"unknown: {key}" for key in weights if key not in wanted]
    _refuse(sorted(problems))
    renamed = {}
    for ours, parts in layout.items():
        tensors = [weights[part] for part in parts]
        if len(parts) == 1:
            renamed[ours] = tensors[0]
        elif len({tensor.shape for tensor in tensors}) == 1:
            renamed[ours] = torch.cat(tensors)
        else:
            shapes = ", ".join(
                f"{part} {tuple(t.shape)}" for part, t in zip(parts, tensors, strict=True)
            )
            problems.append(f"wrong shape: {shapes} are not of one shape")
    _refuse(problems)
    return renamed


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], layout: Layout | None = None
) -> None:
    """Fill the model; every key and shape has to match.

    Args:
        layout: what the checkpoint calls our weights, for the messages; None if the same.

    Raises:
        CheckpointError: names the missing, the unknown or the mismatching keys.
    """
    own = model.state_dict()
    theirs = {ours: " + ".join(parts) for ours, parts in (layout or {}).items()}
    problems = [f"missing: {theirs.get(key, key)}" for key in own if key not in weights]
    problems += [f"unknown: {theirs.get(key, key)}" for key in weights if key not in own]
    for key in own:
        if key not in weights:
            continue
        have, want = weights[key], own[key]
        if have.shape != want.shape:
            problems.append(
                f"wrong shape: {theirs.get(key, key)} is {tuple(have.shape)}, "
                f"not {tuple(want.shape)}"
            )
        elif have.is_floating_point() != want.is_floating_point():
            # Integers here are quantised weights, which copying would turn into nonsense.
            problems.append(f"wrong type: {theirs.get(key, key)} is {have.dtype}, not {want.dtype}")
    _refuse(problems)
    model.load_state_dict(dict(weights))


def _refuse(problems: list[str]) -> None:
    if not problems:
        return
    shown = "; ".join(problems[:SHOWN_PROBLEMS])
    rest = len(problems) - SHOWN_PROBLEMS
    more = f"; and {rest} more" if rest > 0 else ""
    raise CheckpointError(f"the weights do not fit the network: {shown}{more}")
