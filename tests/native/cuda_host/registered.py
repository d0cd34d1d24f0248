"""The ops for CUDA of the op library, compiled for this machine's processor."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.native.cuda_host import library
from tests.native.cuda_host.library import FLAGS, HERE, KERNELS, TOP

PLUGINS = TOP / "native" / "onnxruntime"
HEADERS = TOP / "native" / "third_party" / "onnxruntime" / "include"
OPS = ("cuda_ops.cc", "cuda_linear.cc", "linear.cc", "workspace.cc")
SOURCES = [*(PLUGINS / name for name in OPS), HERE / "registered.cc"]
DEFINED = ["-DORT_API_MANUAL_INIT", '-DTOKENFOLD_CUDA_PROVIDER="CPUExecutionProvider"']


def build() -> Path:
    """Compile the library, unless it is compiled already.

    Raises:
        subprocess.CalledProcessError: the sources do not compile.
    """
    kernels = library.build()
    runtime = HERE / "runtime"
    read = [*SOURCES, *sorted(PLUGINS.glob("*.h")), *sorted(runtime.iterdir())]
    contents = b"".join(path.read_bytes() for path in read)
    key = hashlib.sha256(repr((FLAGS, DEFINED, kernels.name)).encode() + contents).hexdigest()
    folders: list[str | Path] = [
        f"-I{PLUGINS}",
        f"-I{KERNELS}",
        f"-I{runtime}",
        "-isystem",
        HEADERS,
    ]
    arguments: list[str | Path] = [*DEFINED, *folders, *SOURCES, kernels]
    return library.compile_library(f"registered-{key[:16]}.so", arguments)
