"""A stand-in for cuBLASLt, which the ops find in the process by the real one's name."""

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
    """Compile, unless that was done before.

    Raises:
        subprocess.CalledProcessError: the source does not compile; the compiler has said why.
    """
    found = library.compiler()
    assert found is not None
    source = HERE / "cublas_lt.cc"
    soname = f"-Wl,-soname,{NAME}"
    key = hashlib.sha256(repr((found, FLAGS, soname)).encode() + source.read_bytes()).hexdigest()
    return library.compiled(f"cublas_lt-{key[:16]}.so", [soname, source])


def in_process() -> ctypes.CDLL | None:
    """What goes by the name in this process; loads nothing."""
    try:
        return ctypes.CDLL(NAME, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return None


@cache
def load() -> ctypes.CDLL | None:
    """The stand-in, in this process to stay; None where a real one is, or may come to be needed.

    Its symbols stay out of what other libraries see: it is found by its name alone.
    """
    if in_process() or "CUDAExecutionProvider" in ort.get_available_providers():
        return None
    own = ctypes.CDLL(str(build()), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    found = in_process()
    assert found is not None
    assert found._handle == own._handle
    own.tokenfold_host_refuse.argtypes = [ctypes.c_uint64]
    own.tokenfold_host_refuse.restype = None
    own.tokenfold_host_living.restype = ctypes.c_size_t
    return own
