"""Downloads from the Hugging Face hub."""

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
    """Download the files of `owner/name` that our loaders read, unless they are in the cache.

    Raises:
        CheckpointError: the repository does not exist or is not accessible, or the hub cannot be
            reached.
    """
    folder = _download(repository, [*DESCRIPTIONS, SAFETENSORS, INDEX, SHARDS])
    if (folder / SAFETENSORS).exists() or (folder / INDEX).exists():
        return folder
    # One format at a time, so that weights in several formats are not all downloaded.
    for name in (PICKLED, *OPEN_CLIP):
        folder = _download(repository, [*DESCRIPTIONS, name])
        if (folder / name).exists():
            break
    return folder


def fetch_files(repository: str, names: Iterable[str]) -> Path:
    """Download the files that the repository has, and return their folder.

    Raises:
        CheckpointError: as `fetch`.
    """
    return _download(repository, list(names))


def _download(repository: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository}: access is restricted; accept the terms on the hub and run "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repository}: no such repository on the hub; if it is private, run `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{repository}: the hub cannot be reached, and the repository is not in the local "
            "cache; download it elsewhere and pass the folder"
        ) from error
    except (HFValidationError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{repository}: {error}") from error
