"""The compiled libraries: their paths, and the availability of the one for the CPU."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

Library = Literal["cpu", "cuda", "tensorrt"]
"""Ops for ONNX Runtime on a CPU, ops for ONNX Runtime on a GPU, plugins for TensorRT."""

DOMAIN = "tokenfold"
"""The ONNX domain of the ops."""

FOLDER = Path(__file__).with_name("native")
"""The folder that `make plugins` and a wheel put the libraries into."""

VARIABLES: dict[Library, str] = {
    "cpu": "TOKENFOLD_ORT_LIBRARY",
    "cuda": "TOKENFOLD_ORT_CUDA_LIBRARY",
    "tensorrt": "TOKENFOLD_TENSORRT_LIBRARY",
}
"""Environment variables that name another file, or are `none` to disable the library."""

FILES: dict[Library, str] = {
    "cpu": "libtokenfold_ort.so",
    "cuda": "libtokenfold_ort_cuda.so",
    "tensorrt": "libtokenfold_tensorrt.so",
}

logger = logging.getLogger(__name__)


class NativeOps(NamedTuple):
    """Availability of the compiled ops for sessions on the CPU; see `native_ops`.

    Attributes:
        path: the library in use, or None where portable ops run.
        kernels: instruction set of its kernels, e.g. `avx2`, or None where portable ops run.
        reason: why portable ops run, or None where the library is in use.
    """

    path: Path | None = None
    kernels: str | None = None
    reason: str | None = None


def find(library: Library = "cpu") -> Path | None:
    """Return the path of a library; None if it is not built or its variable is `none`.

    All libraries load on machines without a GPU. The library for CUDA has the ops for the CPU too.
    It registers linear layers and packed tokens for CUDA alone, and ONNX Runtime then ignores their
    portable bodies: a session on the CPU that uses it cannot open half-precision exports.

    Raises:
        FileNotFoundError: the library's variable names a file that does not exist.
    """
    variable = VARIABLES[library]
    setting = os.environ.get(variable)
    if setting == "none":
        return None
    if setting:
        path = Path(setting)
        if not path.is_file():
            raise FileNotFoundError(f"{variable} names {setting}, which is not a file")
        return path
    built = FOLDER / FILES[library]
    return built if built.is_file() else None


def native_ops() -> NativeOps:
    """Return the availability of the compiled ops for sessions on the CPU.

    A library that cannot be loaded, because it is damaged or made for another processor, is logged
    as a warning, once per file.

    Raises:
        FileNotFoundError: see `find`.
    """
    path = find()
    if path is not None:
        return _loaded(path)
    variable = VARIABLES["cpu"]
    if os.environ.get(variable) == "none":
        return NativeOps(reason=f"{variable} is none")
    missing = FOLDER / FILES["cpu"]
    return NativeOps(reason=f"{missing} does not exist; in a checkout, `make plugins` builds it")


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a library's file in hexadecimal, which identifies the build.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _loaded(path: Path) -> NativeOps:
    import onnxruntime  # here: TensorRT's side of the runtime works without it

    try:
        handle = ctypes.CDLL(str(path))
        handle.TokenfoldKernels.restype = ctypes.c_char_p
        kernels: bytes = handle.TokenfoldKernels()
        # Only a test: ONNX Runtime refuses a library that was made for a newer version.
        onnxruntime.SessionOptions().register_custom_ops_library(str(path))
    # ONNX Runtime's exceptions have no common base class.
    except Exception as error:
        reason = f"{path.name} cannot be loaded: {error}"
        logger.warning("%s; portable ops run instead: same results, but slower", reason)
        return NativeOps(reason=reason)
    return NativeOps(path, kernels.decode())
