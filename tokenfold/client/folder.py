"""Find the images of a folder, and batch those that the gallery lacks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
# Maximum bytes of the images of a request; servers accept 32 MiB by default.
_MAX_BYTES = 24 * 1024 * 1024


class Picture(NamedTuple):
    """An image file to send.

    Attributes:
        id: SHA-256 of the content, in hex.
        path: path relative to the folder.
        content: bytes of the file.
    """

    id: str
    path: Path
    content: bytes


Failure = tuple[Path, str]
"""A file, and the reason why it is not in the gallery."""


def path_text(path: Path) -> str:
    """Return a path as text, with undecodable bytes replaced."""
    return os.fsencode(path).decode(errors="replace")


def walk(folder: Path, failed: list[Failure]) -> Iterator[Path]:
    """Yield the images below a folder in order, without hidden ones.

    Args:
        folder: the folder.
        failed: list that receives the folders that cannot be read.
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
    """Yield images to send, in batches of at most `size` images and limited bytes.

    Args:
        folder: the folder.
        known: ids of images in the gallery; yielded images are added.
        size: maximum number of images per batch.
        skipped: list that receives files whose content is known or was yielded before.
        failed: list that receives the files that cannot be read.
    """
    batch: list[Picture] = []
    batch_bytes = 0
    for file in walk(folder, failed):
        path = file.relative_to(folder)
        try:
            content = file.read_bytes()
        except OSError as error:
            failed.append((path, _reason(error)))
            continue
        image_id = hashlib.sha256(content).hexdigest()
        if image_id in known:
            skipped.append(path)
            continue
        known.add(image_id)
        if batch and (len(batch) == size or batch_bytes + len(content) > _MAX_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(Picture(image_id, path, content))
        batch_bytes += len(content)
    if batch:
        yield batch


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
