"""One way to name any checkpoint: a folder, a file, `random:NAME`, or a hub id."""

from __future__ import annotations

from pathlib import Path

from models.checkpoints import hub, huggingface, native, random, state_dicts, swag, timm
from models.checkpoints.checkpoint import Checkpoint, CheckpointError
from models.checkpoints.files import SUFFIXES, read_json, read_weights

ALLOWED = (
    "a folder in Hugging Face, timm or Tokenfold format, a state dict "
    f"({', '.join(SUFFIXES)}), {random.PREFIX}NAME, or a hub id such as google/vit-base-patch16-224"
)


def load(source: str) -> Checkpoint:
    """The checkpoint that `source` names; what exists on disk comes before the hub.

    Raises:
        CheckpointError: there is no such thing, or it cannot be loaded; the message says why.
    """
    if source.startswith(random.PREFIX):
        return random.load(source.removeprefix(random.PREFIX))
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.exists():
        weights = read_weights(path)
        if swag.recognises(weights):
            return swag.from_weights(weights, path)
        return state_dicts.from_weights(weights, path)
    if hub.REPOSITORY.fullmatch(source) and path.suffix not in SUFFIXES:
        return _folder(hub.fetch(source))
    raise CheckpointError(f"{source!r}: no such file or folder; a source is {ALLOWED}")


def _folder(folder: Path) -> Checkpoint:
    if (folder / native.DESCRIPTION).exists():
        return native.load(folder)
    if not (folder / huggingface.CONFIG).exists():
        raise CheckpointError(
            f"{folder}: neither {native.DESCRIPTION} nor {huggingface.CONFIG} in it; a source is "
            f"{ALLOWED}"
        )
    config = read_json(folder / huggingface.CONFIG)
    if "architecture" in config:
        return timm.load(folder)
    return huggingface.load(folder)
