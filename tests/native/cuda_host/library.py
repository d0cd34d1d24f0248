"""The CUDA kernels compiled as C++, with threads run as fibres, to test them without a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.native.cuda_host import interface

HERE = Path(__file__).parent
TOP = HERE.parents[2]
KERNELS = TOP / "native" / "kernels"
SOURCES = [
    *sorted(KERNELS.glob("*.cu")),
    *sorted(KERNELS.glob("*.cc")),
    HERE / "fibres.cc",
]
HEADERS = [path for folder in (KERNELS, HERE) for path in sorted(folder.glob("*.*h"))]
FLAGS = [
    *("-std=c++17", "-O2", "-shared", "-fPIC"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"),  # g++ does not know nvcc's pragmas.
]

# Orders of a block's threads between two barriers. A result that depends on the order is a race.
ASCENDING, DESCENDING, SHUFFLED = 0, 1, 2


def compiler() -> str | None:
    """Return the C++ compiler that make would use; None if there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")


def compile_library(name: str, arguments: Sequence[str | Path]) -> Path:
    """Compile a shared library, unless a library of this name exists; return its path.

    Raises:
        subprocess.CalledProcessError: the compilation failed; the compiler printed the reason.
    """
    cxx = compiler()
    assert cxx is not None
    out = TOP / "build" / "cuda_host" / name
    if out.is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    # Compiled under another name, so that parallel tests never load a partial library.
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder) / name
        subprocess.run([cxx, *FLAGS, "-o", draft, *arguments], check=True)
        draft.rename(out)
    return out


def build() -> Path:
    """Compile the kernels, unless they are compiled already; return the library's path.

    Raises:
        subprocess.CalledProcessError: the compilation failed; the compiler printed the reason.
    """
    cxx = compiler()
    assert cxx is not None
    contents = b"".join(path.read_bytes() for path in (*SOURCES, *HEADERS))
    version = subprocess.run([cxx, "--version"], check=True, capture_output=True).stdout
    key = hashlib.sha256(repr(FLAGS).encode() + version + contents).hexdigest()[:16]
    folders = [f"-I{KERNELS}", f"-I{HERE}", "-include", "cuda_host.h"]
    return compile_library(f"kernels-{key}.so", [*folders, "-x", "c++", *SOURCES])


@cache
def load() -> ctypes.CDLL:
    """Load the library, and declare its functions."""
    library = ctypes.CDLL(str(build()))
    for op, structure in interface.OPS.items():
        run = getattr(library, f"tokenfold_cuda_{op}")
        run.argtypes = [ctypes.POINTER(structure), ctypes.c_void_p]
    for launch, structure in interface.LAUNCHES.items():
        prepare = getattr(library, f"tokenfold_cuda_prepare_{launch}")
        prepare.argtypes = [ctypes.POINTER(structure), ctypes.POINTER(interface.Launch)]
    library.tokenfold_cuda_match_workspace.argtypes = [ctypes.c_int64] * 3
    library.tokenfold_cuda_match_workspace.restype = ctypes.c_size_t
    library.tokenfold_cuda_importance_workspace.argtypes = [ctypes.c_int64] * 3
    library.tokenfold_cuda_importance_workspace.restype = ctypes.c_size_t
    library.tokenfold_cuda_text.restype = ctypes.c_char_p
    library.tokenfold_host_problem.restype = ctypes.c_char_p
    library.tokenfold_host_order.argtypes = [ctypes.c_int, ctypes.c_uint]
    library.tokenfold_host_processors.argtypes = [ctypes.c_int]
    library.tokenfold_cuda_spread.argtypes = [
        ctypes.POINTER(interface.Launch),
        ctypes.c_int,
        ctypes.c_int,
    ]
    library.tokenfold_cuda_spread.restype = None
    return library


def workspace_bytes(batch: int, tokens: int, head_dim: int) -> int:
    """Return the workspace size of a matcher in bytes."""
    return int(load().tokenfold_cuda_match_workspace(batch, tokens, head_dim))


def text(code: int) -> str:
    """Return the message for an error code."""
    message: bytes = load().tokenfold_cuda_text(code)
    return message.decode()


def prepare(op: str, arguments: ctypes.Structure) -> tuple[int, interface.Launch]:
    """Prepare a launch; return the error code, and the launch, which is valid if the code is 0."""
    launch = interface.Launch()
    code = getattr(load(), f"tokenfold_cuda_prepare_{op}")(arguments, launch)
    return int(code), launch


def spread(launch: interface.Launch, architecture: int, processors: int) -> None:
    """Spread a prepared launch over clusters of blocks.

    Args:
        architecture: compute capability of the GPU, such as 90.
        processors: number of streaming multiprocessors of the GPU, such as 132.
    """
    load().tokenfold_cuda_spread(launch, architecture, processors)


def run(
    op: str, arguments: ctypes.Structure, order: int = ASCENDING, seed: int = 0, processors: int = 0
) -> None:
    """Run an op's kernel on the CPU.

    Args:
        order: order of the threads: `ASCENDING`, `DESCENDING` or `SHUFFLED`.
        seed: seed of `SHUFFLED`.
        processors: number of multiprocessors of the simulated sm_90 GPU that the launch is spread
            over; 0 for a launch that is not spread.

    Raises:
        RuntimeError: the op rejects its arguments, or its threads do something that is undefined
            on a GPU.
    """
    library = load()
    library.tokenfold_host_order(order, seed)
    library.tokenfold_host_processors(processors)
    code = getattr(library, f"tokenfold_cuda_{op}")(arguments, None)
    if code:
        problem: bytes = library.tokenfold_host_problem()
        raise RuntimeError(problem.decode() or text(code))
