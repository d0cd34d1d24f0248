"""What every loader returns, and the errors that all of them raise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from models.preprocess import Preprocess
from models.vit import VisionTransformer


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as asked; the message says what and where."""


class Checkpoint(NamedTuple):
    """A network with its weights, ready to run, and what surrounds it."""

    model: VisionTransformer
    preprocess: Preprocess
    labels: tuple[str, ...]


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fill the model; every key and shape has to match.

    Raises:
        CheckpointError: names the missing, the unknown or the mismatching keys.
    """
    own = model.state_dict()
    problems = [f"missing: {key}" for key in own if key not in weights]
    problems += [f"unknown: {key}" for key in weights if key not in own]
    problems += [
        f"wrong shape: {key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:10])
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(f"the weights do not fit the network: {shown}{more}")
    model.load_state_dict(dict(weights))
