"""Where the compiled custom-op library is. Without one, ONNX Runtime runs the portable bodies."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

VARIABLE = "TOKENFOLD_ORT_LIBRARY"
FILE = "libtokenfold_ort.so"


def find() -> Path | None:
    """The library to register, or None for the portable bodies.

    `TOKENFOLD_ORT_LIBRARY` names a file, or is `none` to do without; by default the one that
    `make plugins` leaves in this package.

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


def kernels() -> str | None:
    """The instruction set that the library's kernels use here, or None without a library."""
    path = find()
    if path is None:
        return None
    name = ctypes.CDLL(str(path)).TokenfoldKernels
    name.restype = ctypes.c_char_p
    found: bytes = name()
    return found.decode()
