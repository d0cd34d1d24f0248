"""State dicts: renaming to our names, shape checks, and loading into a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tokenfold.models.checkpoints.checkpoint import CheckpointError

NameTable = dict[str, tuple[str, ...]]
"""Our name of a weight -> the checkpoint's names of the parts that are joined to make it."""

MAX_SHOWN_PROBLEMS = 10


def add_layer(table: NameTable, ours: str, *theirs: str, bias: bool = True) -> None:
    """Add the weight and the bias of a layer (linear, convolution or norm) to a name table."""
    for kind in ("weight", "bias") if bias else ("weight",):
        table[f"{ours}.{kind}"] = tuple(f"{name}.{kind}" for name in theirs)


def without_prefixes(weights: Mapping[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    """Return the weights whose names start with none of the prefixes."""
    unused = tuple(prefixes)
    return {key: tensor for key, tensor in weights.items() if not key.startswith(unused)}


def weight_shape(
    weights: Mapping[str, Tensor], key: str, dimensions: int, hint: str = ""
) -> torch.Size:
    """Return the shape of a weight.

    Args:
        dimensions: number of dimensions that the weight has to have.
        hint: added to the message if the weight is missing.

    Raises:
        CheckpointError: the weight is missing or has another number of dimensions.
    """
    if key not in weights:
        raise CheckpointError(f"missing: {key}{hint and f'; {hint}'}")
    if weights[key].ndim != dimensions:
        raise CheckpointError(f"{key} has {weights[key].ndim} dimensions instead of {dimensions}")
    return weights[key].shape


def patch_shape(weights: Mapping[str, Tensor], key: str, hint: str = "") -> tuple[int, int]:
    """Return the width and the patch size of a patch embedding, a convolution (D, 3, p, p).

    Raises:
        CheckpointError: as `weight_shape`, or the patches are not square ones of 3 channels.
    """
    dim, channels, patch, width = weight_shape(weights, key, 4, hint)
    if channels != 3 or patch != width:
        raise CheckpointError(
            f"{key} has shape {tuple(weights[key].shape)}; supported are square patches of 3 "
            "channels"
        )
    return dim, patch


def square_side(patches: int, key: str) -> int:
    """Return the side of a square of patches.

    Args:
        key: name of the position embedding, for the message.

    Raises:
        CheckpointError: the patches do not form a square.
    """
    side = math.isqrt(max(patches, 0))
    if side == 0 or side * side != patches:
        raise CheckpointError(f"{key} has {patches} patches, which do not form a square")
    return side


def resize_positions(positions: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Resize a position embedding from a square grid of patches, by bicubic interpolation.

    `transformers` resizes positions the same way (DINOv2's rule).

    Args:
        positions: (1, prefix + patches, D); the prefix is left as it is.
        grid: rows and columns of the result.

    Returns:
        (1, prefix + rows * columns, D) of the same type.

    Raises:
        CheckpointError: the patches do not form a square, so their grid is unknown.
    """
    side = square_side(positions.shape[1] - prefix, "the position embedding")
    image = positions[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    resized = nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    spatial = resized.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :prefix], spatial], dim=1)


def rename(weights: Mapping[str, Tensor], table: NameTable) -> dict[str, Tensor]:
    """Give weights our names, and join those that are stored in parts (query, key, value).

    Raises:
        CheckpointError: weights are missing, unknown or cannot be joined; the message names them.
    """
    expected = {theirs for parts in table.values() for theirs in parts}
    problems = [f"missing: {key}" for key in expected if key not in weights]
    problems += [f"unknown: {key}" for key in weights if key not in expected]
    _check_no_problems(sorted(problems))
    renamed = {}
    for ours, parts in table.items():
        tensors = [weights[part] for part in parts]
        if len(parts) == 1:
            renamed[ours] = tensors[0]
        elif len({tensor.shape for tensor in tensors}) == 1:
            renamed[ours] = torch.cat(tensors)
        else:
            shapes = ", ".join(
                f"{part} {tuple(tensor.shape)}" for part, tensor in zip(parts, tensors, strict=True)
            )
            problems.append(f"wrong shape: {shapes} differ, so they cannot be joined")
    _check_no_problems(problems)
    return renamed


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], table: NameTable | None = None
) -> None:
    """Fill a network; every key, shape and kind of type has to match.

    Args:
        table: the checkpoint's names of our weights, for the messages; None if they are the same.

    Raises:
        CheckpointError: names the missing, unknown or mismatching weights.
    """
    expected = model.state_dict()
    theirs = {ours: " + ".join(parts) for ours, parts in (table or {}).items()}
    problems = [f"missing: {theirs.get(key, key)}" for key in expected if key not in weights]
    problems += [f"unknown: {theirs.get(key, key)}" for key in weights if key not in expected]
    for key, parameter in expected.items():
        if key not in weights:
            continue
        tensor = weights[key]
        if tensor.shape != parameter.shape:
            problems.append(
                f"wrong shape: {theirs.get(key, key)} is {tuple(tensor.shape)}, "
                f"not {tuple(parameter.shape)}"
            )
        elif tensor.is_floating_point() != parameter.is_floating_point():
            # Integers here are quantised weights, which copying would turn into nonsense.
            problems.append(
                f"wrong type: {theirs.get(key, key)} is {tensor.dtype}, not {parameter.dtype}"
            )
    _check_no_problems(problems)
    model.load_state_dict(dict(weights))


def _check_no_problems(problems: list[str]) -> None:
    """Check that there are no problems; raise CheckpointError with the first ones otherwise."""
    if not problems:
        return
    shown = "; ".join(problems[:MAX_SHOWN_PROBLEMS])
    rest = len(problems) - MAX_SHOWN_PROBLEMS
    more = f"; and {rest} more" if rest > 0 else ""
    raise CheckpointError(f"the weights do not fit the network: {shown}{more}")
