"""Tables from our names of weights to a checkpoint's, and looks at weights by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tokenfold.models.checkpoints.checkpoint import CheckpointError

Names = dict[str, tuple[str, ...]]
"""Our name of a weight -> the checkpoint's names of its parts, see `checkpoint.Layout`."""


def layer(table: Names, ours: str, *theirs: str, bias: bool = True) -> None:
    """Add a layer of a weight and a bias (linear, convolution or norm)."""
    for kind in ("weight", "bias") if bias else ("weight",):
        table[f"{ours}.{kind}"] = tuple(f"{name}.{kind}" for name in theirs)


def without(weights: Mapping[str, Tensor], unused: Iterable[str]) -> dict[str, Tensor]:
    """The weights but those whose names begin so."""
    prefixes = tuple(unused)
    return {key: tensor for key, tensor in weights.items() if not key.startswith(prefixes)}


def shape(
    weights: Mapping[str, Tensor], key: str, dimensions: int, otherwise: str = ""
) -> torch.Size:
    """Of a weight that has to be there.

    Args:
        otherwise: what it means if it is not, for the message.

    Raises:
        CheckpointError: it is not, or has another number of dimensions.
    """
    if key not in weights:
        raise CheckpointError(f"missing: {key}{otherwise and f'; {otherwise}'}")
    if weights[key].ndim != dimensions:
        raise CheckpointError(f"{key} has {weights[key].ndim} dimensions instead of {dimensions}")
    return weights[key].shape
