"""Where the plugins for TensorRT are. Without them, TensorRT builds the portable bodies."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

VARIABLE = "TOKENFOLD_TENSORRT_LIBRARY"
FILE = "libtokenfold_tensorrt.so"


def find() -> Path | None:
    """The library to load, or None for the portable bodies.

    The variable names a file, or is `none` to do without; by default it is the one that
    `make plugins-tensorrt` leaves in this package. It loads where there is no GPU.

    Raises:
        FileNotFoundError: the variable names a file that is not there.
    """
    named = os.environ.get(VARIABLE)
    if named == "none":
        return None
    if named:
        path = Path(named)
        if not path.is_file():
            raise FileNotFoundError(f"{VARIABLE} names {named}, which is no file")
        return path
    built = Path(__file__).with_name(FILE)
    return built if built.is_file() else None


def fingerprint(path: Path) -> str:
    """What tells a library from another build of it: the SHA-256 of its file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
