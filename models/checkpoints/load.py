"""Loader of any checkpoint: a folder, a file, `random:NAME`, or a hub id."""

from __future__ import annotations

from pathlib import Path

from tokenfold.models.checkpoints import (
    dual,
    hub,
    huggingface,
    meter,
    native,
    open_clip,
    random,
    random_dual,
    random_pair,
    state_dicts,
    swag,
    timm,
    vilt,
    vilt_official,
)
from tokenfold.models.checkpoints.checkpoint import AnyCheckpoint, Checkpoint, CheckpointError
from tokenfold.models.checkpoints.files import SUFFIXES, read_json, read_weights

ALLOWED = (
    "a folder in Hugging Face, timm, OpenCLIP or Tokenfold format, a state dict "
    f"({', '.join(SUFFIXES)}), {random.PREFIX}NAME, or a hub id such as google/vit-base-patch16-224"
)


def load(source: str) -> AnyCheckpoint:
    """Load the checkpoint that `source` names, from disk if it exists there, else from the hub.

    Raises:
        CheckpointError: the source does not exist, or it cannot be loaded.
    """
    if source.startswith(random.PREFIX):
        name = source.removeprefix(random.PREFIX)
        if random_pair.recognises(name):
            return random_pair.load(name)
        if random_dual.recognises(name):
            return random_dual.load(name)
        return random.load(name, (*random_pair.NAMES, *random_dual.NAMES))
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, path.absolute().name)
    if path.exists():
        weights = read_weights(path)
        if open_clip.recognises(weights):
            return open_clip.from_weights(weights, path)
        if swag.recognises(weights):
            return swag.from_weights(weights, path)
        if vilt_official.recognises(weights):
            return vilt_official.from_weights(weights, path)
        if meter.recognises(weights):
            return meter.from_weights(weights, path)
        return state_dicts.from_weights(weights, path)
    if hub.REPOSITORY.fullmatch(source) and path.suffix not in SUFFIXES:
        return _folder(hub.fetch(source), source.split("/")[-1])
    raise CheckpointError(f"{source!r}: no such file or folder; a source is {ALLOWED}")


def load_classifier(source: str) -> Checkpoint:
    """Load an image classifier; see `load`.

    Raises:
        CheckpointError: as `load`, or the network takes texts too.
    """
    checkpoint = load(source)
    if not isinstance(checkpoint, Checkpoint):
        raise CheckpointError(f"{source!r} takes images with texts; it is not an image classifier")
    return checkpoint


def _folder(folder: Path, name: str) -> AnyCheckpoint:
    if (folder / native.DESCRIPTION).exists():
        return native.load(folder)
    if open_clip.recognises_folder(folder):
        return open_clip.load(folder)
    if not (folder / huggingface.CONFIG).exists():
        raise CheckpointError(
            f"{folder} has neither {native.DESCRIPTION} nor {huggingface.CONFIG}; a source is "
            f"{ALLOWED}"
        )
    config = read_json(folder / huggingface.CONFIG)
    if "architecture" in config:
        return timm.load(folder)
    if vilt.recognises(config):
        return vilt.load(folder, name)
    if meter.recognises_config(config):
        return meter.load(folder, name)
    if dual.recognises(config):
        return dual.load(folder)
    return huggingface.load(folder)
