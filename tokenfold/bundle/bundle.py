"""Bundles: the folders that export writes and the service reads.

    manifest.json   description of the model, its levels, and the sha256 of all other files
    profile.json    measurements of the levels; optional

An image classifier has
    model.onnx      one graph for every level: `image`, `plan` -> `logits`, `slots`

An image-text network has two graphs, so that an image is embedded once for any number of texts:
    vision.onnx     `image` -> `image_tokens`
    joint.onnx      `image_tokens`, `input_ids`, `text_size`, `plan` -> one output per task,
                    `pooled`, `text_slots`, `image_slots`
    tokenizer.json  converts a text to `input_ids`

A dual encoder, which compares vectors of images and texts, has
    image.onnx      `image`, `plan` -> `vector` of length 1, `slots`
    text.onnx       `input_ids`, `text_size` -> `vector` of length 1
    tokenizer.json  as above
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self, TypeVar

from tokenfold.bundle.document import VersionedDocument
from tokenfold.bundle.manifest import (
    IMAGE,
    JOINT,
    MANIFEST,
    MODEL,
    TEXT,
    TOKENIZER,
    VISION,
    Manifest,
)
from tokenfold.bundle.profile import PROFILE, Profile

D = TypeVar("D", bound=VersionedDocument)


class BundleError(ValueError):
    """A folder that is not a valid bundle; the message names the file and its problem."""


class Bundle:
    """A bundle in a folder.

    Attributes:
        profile: measurements of the levels; None for a bundle that was not measured.
    """

    def __init__(self, folder: Path, manifest: Manifest, profile: Profile | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.profile = profile

    @property
    def model(self) -> Path:
        """Path of an image classifier's graph."""
        return self.folder / MODEL

    @property
    def vision(self) -> Path:
        """Path of the graph of an image-text network that embeds images."""
        return self.folder / VISION

    @property
    def joint(self) -> Path:
        """Path of the graph of an image-text network that combines image and text."""
        return self.folder / JOINT

    @property
    def image(self) -> Path:
        """Path of the graph of a dual encoder that embeds images."""
        return self.folder / IMAGE

    @property
    def text(self) -> Path:
        """Path of the graph of a dual encoder that embeds texts."""
        return self.folder / TEXT

    @property
    def tokenizer(self) -> Path:
        """Path of the tokenizer of a network that takes texts."""
        return self.folder / TOKENIZER

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a bundle and check its schema and the checksums of its files.

        Raises:
            BundleError: a file is missing, altered, or has a format unknown to this version.
        """
        manifest = read_document(folder / MANIFEST, Manifest)
        for name, stored in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise BundleError(f"{path} is missing")
            if sha256(path) != stored.sha256:
                raise BundleError(
                    f"{path} is not the exported file: its sha256 differs from the manifest"
                )
        profile = None
        if PROFILE in manifest.files:
            profile = read_document(folder / PROFILE, Profile)
            galleries = (level.neighbours for level in profile.levels.values())
            unknown = set(profile.levels).union(*galleries) - set(manifest.levels)
            if unknown:
                raise BundleError(f"{folder / PROFILE}: unknown levels {sorted(unknown)}")
            tasks = {task for level in profile.levels.values() for task in level.quality}
            if tasks - set(manifest.tasks):
                unknown_tasks = sorted(tasks - set(manifest.tasks))
                raise BundleError(f"{folder / PROFILE}: unknown tasks {unknown_tasks}")
        return cls(folder, manifest, profile)

    @staticmethod
    def find(root: Path) -> list[Path]:
        """Return the bundle folders at or directly below `root`, sorted by name."""
        if (root / MANIFEST).is_file():
            return [root]
        if not root.is_dir():
            return []
        folders = (path.parent for path in root.glob(f"*/{MANIFEST}"))
        # The temporary folder of an export that was killed starts with a dot.
        return sorted(folder for folder in folders if not folder.name.startswith("."))


def sha256(path: Path) -> str:
    """Return the checksum of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_document(path: Path, document: type[D]) -> D:
    """Read a manifest or profile.

    Raises:
        BundleError: the file is missing, has an unknown format, or is not such a document.
    """
    try:
        return document.parse(path.read_text())
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from error
