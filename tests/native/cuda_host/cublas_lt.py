"""A fake of cuBLASLt, which the ops find in the process under the real library's name."""

from __future__ import annotations

import ctypes
import hashlib
import os
from functools import cache
from pathlib import Path

import onnxruntime as ort

from tests.native.cuda_host import library
from tests.native.cuda_host.library import FLAGS, HERE

NAME = "libcublasLt.so.13"


def build() -> Path:
    """Compile the fake, unless it is compiled already; return its path.

    Raises:
        subprocess.CalledProcessError: the compilation failed; the compiler printed the reason.
    """
    cxx = library.compiler()
    assert cxx is not None
    source = HERE / "cublas_lt.cc"
    soname = f"-Wl,-soname,{NAME}"
    key = hashlib.sha256(repr((cxx, FLAGS, soname)).encode() + source.read_bytes()).hexdigest()
    return library.compile_library(f"cublas_lt-{key[:16]}.so", [soname, source])


def in_process() -> ctypes.CDLL | None:
    """Return the library of that name if this process has loaded one; never load it."""
    try:
        return ctypes.CDLL(NAME, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return None


@cache
def load() -> ctypes.CDLL | None:
    """Load the fake until the process ends; return None if the real library may be needed.

    The fake's symbols are local, so other libraries find it by its name only.
    """
    if in_process() or "CUDAExecutionProvider" in ort.get_available_providers():
        return None
    fake = ctypes.CDLL(str(build()), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    loaded = in_process()
    assert loaded is not None
    assert loaded._handle == fake._handle
    fake.tokenfold_host_refuse.argtypes = [ctypes.c_uint64]
    fake.tokenfold_host_refuse.restype = None
    fake.tokenfold_host_living.restype = ctypes.c_size_t
    return fake
