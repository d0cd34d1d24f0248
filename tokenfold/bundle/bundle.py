"""The bundle: the folder that export writes and the service reads. No torch in here.

    manifest.json   what the model is, its levels, and the sha256 of every other file
    profile.json    what was measured, level by level; optional

of an image classifier:
    model.onnx      one graph for every level: `image`, `plan` -> `logits`, `slots`

of a network that sees an image with a text, in two graphs, so that an image is embedded once
whatever the number of texts:
    vision.onnx     `image` -> `image_tokens`
    joint.onnx      `image_tokens`, `input_ids`, `text_size`, `plan` -> an output for each task,
                    `pooled`, `text_slots`, `image_slots`
    tokenizer.json  how a text becomes `input_ids`

of a dual encoder, whose images and texts meet nowhere but in the comparison of their vectors:
    image.onnx      `image`, `plan` -> `vector` of length 1, `slots`
    text.onnx       `input_ids`, `text_size` -> `vector` of length 1
    tokenizer.json  as above
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self, TypeVar

from pydantic import ValidationError

from tokenfold.bundle.document import Document
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

D = TypeVar("D", bound=Document)


class BundleError(ValueError):
    """A folder that is no valid bundle; the message names the file and what is wrong with it."""


class Bundle:
    """An opened bundle."""

    def __init__(self, folder: Path, manifest: Manifest, profile: Profile | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.profile = profile

    @property
    def model(self) -> Path:
        """The path of an image classifier's graph."""
        return self.folder / MODEL

    @property
    def vision(self) -> Path:
        """The path of the graph that embeds images, of a network with texts."""
        return self.folder / VISION

    @property
    def joint(self) -> Path:
        """The path of the graph in which image and text meet."""
        return self.folder / JOINT

    @property
    def image(self) -> Path:
        """The path of the graph that makes vectors of images, of a dual encoder."""
        return self.folder / IMAGE

    @property
    def text(self) -> Path:
        """The path of the graph that makes vectors of texts, of a dual encoder."""
        return self.folder / TEXT

    @property
    def tokenizer(self) -> Path:
        """The path of a network with texts' tokenizer."""
        return self.folder / TOKENIZER

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read and check a bundle: schema, presence and checksum of every file.

        Raises:
            BundleError: something is missing, unknown to this version, or altered.
        """
        manifest = read_document(folder / MANIFEST, Manifest)
        for name, stored in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise BundleError(f"{path} is missing")
            if sha256(path) != stored.sha256:
                raise BundleError(f"{path} is not the file that was exported: its sha256 differs")
        profile = None
        if PROFILE in manifest.files:
            profile = read_document(folder / PROFILE, Profile)
            galleries = (level.neighbours for level in profile.levels.values())
            unknown = set(profile.levels).union(*galleries) - set(manifest.levels)
            if unknown:
                raise BundleError(f"{folder / PROFILE}: unknown levels {sorted(unknown)}")
            tasks = {task for level in profile.levels.values() for task in level.quality}
            if tasks - set(manifest.tasks):
                asked = sorted(tasks - set(manifest.tasks))
                raise BundleError(f"{folder / PROFILE}: unknown tasks {asked}")
        return cls(folder, manifest, profile)

    @staticmethod
    def find(root: Path) -> list[Path]:
        """The bundle folders at or directly below `root`, by name."""
        if (root / MANIFEST).is_file():
            return [root]
        if not root.is_dir():
            return []
        folders = (path.parent for path in root.glob(f"*/{MANIFEST}"))
        # A killed export leaves a temporary folder behind, with a dot in front.
        return sorted(folder for folder in folders if not folder.name.startswith("."))


def sha256(path: Path) -> str:
    """Checksum of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_document(path: Path, document: type[D]) -> D:
    """A manifest or profile.

    Raises:
        BundleError: it is missing, or no such document.
    """
    try:
        return document.model_validate_json(path.read_text())
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise BundleError(f"{path}: {error}") from error
