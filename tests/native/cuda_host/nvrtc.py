"""NVRTC, NVIDIA's compiler as a library: it needs no GPU and no toolkit.

From `pip install nvidia-cuda-nvrtc`, or from an installed toolkit.
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


class Compiled(NamedTuple):
    """What NVRTC made of a source.

    Attributes:
        binary: PTX or cubin, empty if it did not compile.
        log: errors and warnings, empty if there were none.
    """

    binary: bytes
    log: str


def find() -> str | None:
    """The library to load, or None."""
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
    """The library.

    Raises:
        FileNotFoundError: there is none.
    """
    found = find()
    if found is None:
        raise FileNotFoundError(f"found no NVRTC: pip install {WHEEL}")
    library = ctypes.CDLL(found)
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
    """Compute capabilities that this NVRTC compiles for, such as 75 for 7.5, ascending."""
    library = load()
    count = c_int()
    _check(library.nvrtcGetNumSupportedArchs(byref(count)))
    found = (c_int * count.value)()
    _check(library.nvrtcGetSupportedArchs(found))
    return list(found)


def compiled(source: Path, architecture: str) -> Compiled:
    """Compile a file, its includes beside it.

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
        given = (c_char_p * len(options))(*(option.encode() for option in options))
        failed = library.nvrtcCompileProgram(program, len(options), given)
        log = _text(program, "ProgramLog").rstrip(b"\0").decode().strip()
        if failed:
            return Compiled(b"", log or f"NVRTC's error {failed}")
        kind = "PTX" if architecture.startswith("compute_") else "CUBIN"
        return Compiled(_text(program, kind), log)
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
        raise RuntimeError(f"NVRTC's error {code}")
