"""Where the compiled custom-op library is. Without one, ONNX Runtime runs the portable bodies."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Literal

Device = Literal["cpu", "cuda"]

VARIABLE = "TOKENFOLD_ORT_LIBRARY"
CUDA_VARIABLE = "TOKENFOLD_ORT_CUDA_LIBRARY"

_PLACES: dict[Device, tuple[str, str]] = {
    "cpu": (VARIABLE, "libtokenfold_ort.so"),
    "cuda": (CUDA_VARIABLE, "libtokenfold_ort_cuda.so"),
}


def find(device: Device = "cpu") -> Path | None:
    """The library to register, or None for the portable bodies.

    A device's variable names a file, or is `none` to do without; by default it is the one that
    `make plugins`, or `make plugins-cuda`, leaves in this package. The one for CUDA has the ops for
    the CPU too, and loads where there is no GPU; but of linear layers and packed tokens it has
    kernels for CUDA alone, and ONNX Runtime forgets their bodies then: a session on the CPU that
    takes it cannot open what was exported in half precision.

    Args:
        device: what the session runs on.

    Raises:
        FileNotFoundError: the variable names a file that is not there.
    """
    variable, file = _PLACES[device]
    named = os.environ.get(variable)
    if named == "none":
        return None
    if named:
        path = Path(named)
        if not path.is_file():
            raise FileNotFoundError(f"{variable} names {named}, which is no file")
        return path
    built = Path(__file__).with_name(file)
    return built if built.is_file() else None


def kernels() -> str | None:
    """The instruction set that the library's kernels use on the CPU, or None without a library."""
    path = find()
    if path is None:
        return None
    name = ctypes.CDLL(str(path)).TokenfoldKernels
    name.restype = ctypes.c_char_p
    found: bytes = name()
    return found.decode()
