"""The images that levels are measured on, from a folder or zip file."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image

from tokenfold.bundle.preprocess import Pixels, Preprocess, pixels

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


class DataError(ValueError):
    """Images or texts that levels cannot be measured on; the message gives the reason."""


class Photos:
    """All images below a folder or in a zip file, decoded on access.

    Attributes:
        names: paths in the folder or archive, in order.
        labels: index of each image's label, which its folder is named after; None where no folder
            is named after a label.
    """

    def __init__(self, source: Path, labels: Sequence[str]) -> None:
        """List the images.

        Raises:
            DataError: there are no images, or only some are in folders named after labels.
        """
        self.source = source
        self._archive: zipfile.ZipFile | None = None
        if source.is_dir():
            paths = [path.relative_to(source).as_posix() for path in source.rglob("*")]
        else:
            try:
                self._archive = zipfile.ZipFile(source)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{source} is neither a folder nor a zip file") from error
            paths = self._archive.namelist()
        self._files = sorted(set(paths))
        self.names = sorted(
            name for name in paths if PurePosixPath(name).suffix.lower() in SUFFIXES
        )
        if not self.names:
            raise DataError(f"{source} holds no images ({', '.join(sorted(SUFFIXES))})")
        self.labels = self._labels(labels)

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, at: int, preprocess: Preprocess) -> Pixels:
        """Return image number `at` as the network's input.

        Raises:
            DataError: the image cannot be read.
        """
        name = self.names[at]
        try:
            with Image.open(BytesIO(self._bytes(name))) as image:
                return pixels(image, preprocess)
        except Exception as error:  # Pillow's decoders raise nearly anything
            raise DataError(f"{self.source}: {name} is not a readable image: {error}") from error

    def text(self, name: str) -> tuple[str, str] | None:
        """Return the path and content of the only text file of this name, or None without one.

        Raises:
            DataError: the file cannot be read, or two folders have one.
        """
        paths = [path for path in self._files if PurePosixPath(path).name == name]
        if len(paths) > 1:
            raise DataError(f"{self.source} has two files {name}: {paths[0]} and {paths[1]}")
        if not paths:
            return None
        try:
            return paths[0], self._bytes(paths[0]).decode()
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.source}: {paths[0]} is not readable: {error}") from error

    def _bytes(self, name: str) -> bytes:
        return self._archive.read(name) if self._archive else (self.source / name).read_bytes()

    def _labels(self, labels: Sequence[str]) -> list[int] | None:
        folders = [PurePosixPath(name).parent.name for name in self.names]
        unknown = sorted(set(folders) - set(labels))
        if len(unknown) == len(set(folders)):
            return None
        if unknown:
            raise DataError(
                f"{self.source}: some folders are named after labels, but these are not: "
                f"{', '.join(unknown[:5])}"
            )
        duplicates = sorted(folder for folder in set(folders) if list(labels).count(folder) > 1)
        if duplicates:
            raise DataError(
                f"{self.source}: the model has duplicate labels {', '.join(duplicates[:5])}"
            )
        return [list(labels).index(folder) for folder in folders]
