"""The images of a folder, in batches of what is not known yet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
# Bytes of the images of a request: servers take 32 MiB, if nobody has told them otherwise.
_MOST_BYTES = 24 * 1024 * 1024


class Picture(NamedTuple):
    """A file that is to be sent.

    Attributes:
        id: hex of its SHA-256.
        path: below the folder.
    """

    id: str
    path: Path
    content: bytes


Failure = tuple[Path, str]
"""A file, and why it is not in the gallery."""


def written(path: Path) -> str:
    """A path as text, whatever bytes its name has."""
    return os.fsencode(path).decode(errors="replace")


def walk(folder: Path, failed: list[Failure]) -> Iterator[Path]:
    """The images below a folder, in order; nothing hidden.

    Args:
        failed: is told of folders that cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        failed.append((folder, _reason(error)))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from walk(entry, failed)
        elif entry.is_file() and entry.suffix.lower() in SUFFIXES:
            yield entry


def batches(
    folder: Path, known: set[str], size: int, *, skipped: list[Path], failed: list[Failure]
) -> Iterator[list[Picture]]:
    """What is to be sent, in requests of at most `size` images and not too many bytes.

    Args:
        known: ids that the gallery has; those that are sent are added.
        skipped: is told of the files whose content the gallery has, or another file.
        failed: is told of those that cannot be read.
    """
    batch: list[Picture] = []
    held = 0
    for file in walk(folder, failed):
        path = file.relative_to(folder)
        try:
            content = file.read_bytes()
        except OSError as error:
            failed.append((path, _reason(error)))
            continue
        name = hashlib.sha256(content).hexdigest()
        if name in known:
            skipped.append(path)
            continue
        known.add(name)
        if batch and (len(batch) == size or held + len(content) > _MOST_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(Picture(name, path, content))
        held += len(content)
    if batch:
        yield batch


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
