"""Fetching a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from tokenfold.models.checkpoints import answers
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.files import INDEX, OPEN_CLIP, PICKLED, SAFETENSORS

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DESCRIPTIONS = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenfold.json",
    "open_clip_config.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt",
    "spiece.model",
    *answers.FILES,
)  # fmt: skip
SHARDS = "model-*-of-*.safetensors"


def fetch(repository: str) -> Path:
    """Download `owner/name`, or find it in the local cache; only what our networks need.

    Raises:
        CheckpointError: no such repository, no access to it, or no network.
    """
    folder = _download(repository, [*DESCRIPTIONS, SAFETENSORS, INDEX, SHARDS])
    if (folder / SAFETENSORS).exists() or (folder / INDEX).exists():
        return folder
    # One after the other, so that a repository with several kinds of weights is not downloaded
    # twice over.
    for name in (PICKLED, *OPEN_CLIP):
        folder = _download(repository, [*DESCRIPTIONS, name])
        if (folder / name).exists():
            break
    return folder


def fetch_files(repository: str, names: Iterable[str]) -> Path:
    """The folder with those of the files that the repository has.

    Raises:
        CheckpointError: as `fetch`.
    """
    return _download(repository, list(names))


def _download(repository: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository}: the hub gives it only to accounts that asked for it; "
            "accept its terms there and run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repository}: no such repository on the hub, or a private one "
            "(then run `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{repository}: the hub cannot be reached, and the repository is not in the local "
            "cache; download it elsewhere and give the folder"
        ) from error
    except (HFValidationError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{repository}: {error}") from error
