"""The ops that ONNX Runtime runs on CUDA, built to run on this machine's processor."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.native.cuda_host import library
from tests.native.cuda_host.library import FLAGS, HERE, KERNELS, TOP

PLUGINS = TOP / "native" / "onnxruntime"
OPS = ("cuda_ops.cc", "cuda_packed.cc", "cuda_linear.cc", "linear.cc", "workspace.cc")
SOURCES = [*(PLUGINS / name for name in OPS), HERE / "registered.cc"]
DEFINED = ["-DORT_API_MANUAL_INIT", '-DTOKENFOLD_CUDA_PROVIDER="CPUExecutionProvider"']


def headers() -> str:
    """The folder of ONNX Runtime's headers.

    Raises:
        subprocess.CalledProcessError: it is not to be had.
    """
    script = str(PLUGINS / "headers.sh")
    found = subprocess.run(["bash", script], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def build() -> Path:
    """Compile, unless that was done before.

    Raises:
        subprocess.CalledProcessError: there are no headers, or the sources do not compile.
    """
    kernels = library.build()
    runtime = HERE / "runtime"
    read = [*SOURCES, *sorted(PLUGINS.glob("*.h")), *sorted(runtime.iterdir())]
    contents = b"".join(path.read_bytes() for path in read)
    key = hashlib.sha256(repr((FLAGS, DEFINED, kernels.name)).encode() + contents).hexdigest()
    folders = [f"-I{PLUGINS}", f"-I{KERNELS}", f"-I{runtime}", "-isystem", headers()]
    arguments: list[str | Path] = [*DEFINED, *folders, *SOURCES, kernels]
    return library.compile_library(f"registered-{key[:16]}.so", arguments)
