"""Readers of JSON and weights: safetensors, sharded or not, and PyTorch files without code."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tokenfold.models.checkpoints.checkpoint import CheckpointError

SAFETENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".torch", ".ckpt")

WRAPPERS = ("model", "state_dict")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: contains a {type(content).__name__}, not a JSON object")
    return content


def folder_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a Hugging Face or timm folder, preferring safetensors to pickles.

    Raises:
        CheckpointError: the folder has no weights, or they cannot be read.
    """
    if (folder / SAFETENSORS).exists():
        return read_weights(folder / SAFETENSORS)
    if (folder / INDEX).exists():
        return _sharded(folder)
    if (folder / PICKLED).exists():
        return read_weights(folder / PICKLED)
    raise CheckpointError(f"{folder}: no weights ({SAFETENSORS}, {INDEX} or {PICKLED})")


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the weights of a file, without the wrappers that training scripts add.

    Raises:
        CheckpointError: the file cannot be read, or contains more than named tensors.
    """
    if file.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{file}: not a file of weights, whose names end in {', '.join(SUFFIXES)}"
        )
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Official DeiT and MAE files include the options of the run; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: contains more than weights, and code in a checkpoint is never run; "
            f"save only its state dict ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # a broken file makes the readers raise almost anything
        raise CheckpointError(f"{file}: {error}") from error
    return _unwrap(content, file)


def _sharded(folder: Path) -> dict[str, Tensor]:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{folder / INDEX}: weight_map does not map keys to files")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{folder / INDEX}: {name!r} is not a file in the same folder")
        shard = read_weights(folder / name)
        unlisted = [key for key in shard if index.get(key) != name]
        if unlisted:
            raise CheckpointError(
                f"{folder / name}: {INDEX} does not list {unlisted[0]} in this file"
            )
        weights.update(shard)
    absent = [key for key in index if key not in weights]
    if absent:
        raise CheckpointError(f"{folder / index[absent[0]]}: {absent[0]} is missing")
    return weights


def _unwrap(content: object, file: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                averaged = f"{wrapper}_ema"
                if averaged in content:
                    # The choice decides the accuracy, so it is not guessed.
                    raise CheckpointError(
                        f"{file}: contains both {wrapper!r} and {averaged!r}; save only one of them"
                    )
                return _unwrap(content[wrapper], file)
        if content and all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
        ):
            prefix = "module."  # left by DistributedDataParallel
            wrapped = all(key.startswith(prefix) for key in content)
            return {key.removeprefix(prefix) if wrapped else key: content[key] for key in content}
    raise CheckpointError(
        f"{file}: contains no state dict, that is, a mapping from names to tensors"
    )
