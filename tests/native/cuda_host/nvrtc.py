"""NVRTC, NVIDIA's compiler library. It needs no GPU.

It comes with `pip install nvidia-cuda-nvrtc`, or with an installed CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p, create_string_buffer
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

WHEEL = "nvidia-cuda-nvrtc"


class CompileResult(NamedTuple):
    """Result of a compilation.

    Attributes:
        binary: PTX or cubin; empty if the compilation failed.
        log: errors and warnings; empty if there were none.
    """

    binary: bytes
    log: str


def find() -> str | None:
    """Return the path or name of the library; None if it is not installed."""
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.startswith("libnvrtc.so"):
            return str(Path(str(file.locate())))
    return ctypes.util.find_library("nvrtc")


@cache
def load() -> ctypes.CDLL:
    """Load the library.

    Raises:
        FileNotFoundError: it is not installed.
    """
    path = find()
    if path is None:
        raise FileNotFoundError(f"NVRTC is not installed: pip install {WHEEL}")
    library = ctypes.CDLL(path)
    library.nvrtcCreateProgram.argtypes = [
        POINTER(c_void_p),
        c_char_p,
        c_char_p,
        c_int,
        c_void_p,
        c_void_p,
    ]
    library.nvrtcCompileProgram.argtypes = [c_void_p, c_int, POINTER(c_char_p)]
    library.nvrtcDestroyProgram.argtypes = [POINTER(c_void_p)]
    for kind in ("ProgramLog", "PTX", "CUBIN"):
        getattr(library, f"nvrtcGet{kind}Size").argtypes = [c_void_p, POINTER(c_size_t)]
        getattr(library, f"nvrtcGet{kind}").argtypes = [c_void_p, c_char_p]
    return library


def architectures() -> list[int]:
    """Return the supported compute capabilities, such as 75 for 7.5, in ascending order."""
    library = load()
    count = c_int()
    _check(library.nvrtcGetNumSupportedArchs(byref(count)))
    capabilities = (c_int * count.value)()
    _check(library.nvrtcGetSupportedArchs(capabilities))
    return list(capabilities)


def compile_file(source: Path, architecture: str) -> CompileResult:
    """Compile a file, whose includes are in the same folder.

    Args:
        source: a .cu file without host code.
        architecture: `sm_90` for a cubin, `compute_90` for PTX.
    """
    library = load()
    program = c_void_p()
    text, name = source.read_bytes(), source.name.encode()
    _check(library.nvrtcCreateProgram(byref(program), text, name, 0, None, None))
    try:
        options = [
            f"--gpu-architecture={architecture}",
            "--std=c++17",
            f"--include-path={source.parent}",
        ]
        raw_options = (c_char_p * len(options))(*(option.encode() for option in options))
        failed = library.nvrtcCompileProgram(program, len(options), raw_options)
        log = _text(program, "ProgramLog").rstrip(b"\0").decode().strip()
        if failed:
            return CompileResult(b"", log or f"NVRTC failed with error {failed}")
        kind = "PTX" if architecture.startswith("compute_") else "CUBIN"
        return CompileResult(_text(program, kind), log)
    finally:
        _check(library.nvrtcDestroyProgram(byref(program)))


def _text(program: c_void_p, kind: str) -> bytes:
    library = load()
    size = c_size_t()
    _check(getattr(library, f"nvrtcGet{kind}Size")(program, byref(size)))
    out = create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{kind}")(program, out))
    return out.raw


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"NVRTC failed with error {code}")
