"""The CUDA kernels compiled as C++, their threads run as fibres: correctness without a GPU."""

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
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"),  # nvcc's are unknown
]

# Orders of a block's threads between two barriers: what depends on them is a race.
ASCENDING, DESCENDING, SHUFFLED = 0, 1, 2


def compiler() -> str | None:
    """The C++ compiler, as make finds it, or None."""
    return shutil.which(os.environ.get("CXX", "c++"))


needs_compiler = pytest.mark.skipif(compiler() is None, reason="found no C++ compiler")


def compiled(name: str, arguments: Sequence[str | Path]) -> Path:
    """A shared library of that name, compiled unless it was before.

    Raises:
        subprocess.CalledProcessError: it does not compile; the compiler has said why.
    """
    found = compiler()
    assert found is not None
    out = TOP / "build" / "cuda_host" / name
    if out.is_file():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: tests that run beside these must not load half a library.
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder) / name
        subprocess.run([found, *FLAGS, "-o", made, *arguments], check=True)
        made.rename(out)
    return out


def build() -> Path:
    """Compile, unless that was done before.

    Raises:
        subprocess.CalledProcessError: the sources do not compile; the compiler has said why.
    """
    found = compiler()
    assert found is not None
    contents = b"".join(path.read_bytes() for path in (*SOURCES, *HEADERS))
    version = subprocess.run([found, "--version"], check=True, capture_output=True).stdout
    key = hashlib.sha256(repr(FLAGS).encode() + version + contents).hexdigest()[:16]
    folders = [f"-I{KERNELS}", f"-I{HERE}", "-include", "cuda_host.h"]
    return compiled(f"kernels-{key}.so", [*folders, "-x", "c++", *SOURCES])


@cache
def load() -> ctypes.CDLL:
    """The library, its functions declared."""
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
    """Bytes of workspace that a matcher asks for."""
    return int(load().tokenfold_cuda_match_workspace(batch, tokens, head_dim))


def text(code: int) -> str:
    """What a code means."""
    said: bytes = load().tokenfold_cuda_text(code)
    return said.decode()


def prepare(op: str, of: ctypes.Structure) -> tuple[int, interface.Launch]:
    """The code, and the launch that goes with code 0."""
    launch = interface.Launch()
    code = getattr(load(), f"tokenfold_cuda_prepare_{op}")(of, launch)
    return int(code), launch


def spread(launch: interface.Launch, architecture: int, processors: int) -> None:
    """Spread a prepared launch over clusters of blocks, for a GPU such as (90, 132)."""
    load().tokenfold_cuda_spread(launch, architecture, processors)


def run(
    op: str, of: ctypes.Structure, order: int = ASCENDING, seed: int = 0, processors: int = 0
) -> None:
    """Run an op's kernel on this machine's processor.

    Args:
        processors: those that the launch is spread over, as if a GPU of sm_90 had them.

    Raises:
        RuntimeError: the op refuses its arguments, or its threads do what is undefined on a GPU.
    """
    library = load()
    library.tokenfold_host_order(order, seed)
    library.tokenfold_host_processors(processors)
    code = getattr(library, f"tokenfold_cuda_{op}")(of, None)
    if code:
        problem: bytes = library.tokenfold_host_problem()
        raise RuntimeError(problem.decode() or text(code))
