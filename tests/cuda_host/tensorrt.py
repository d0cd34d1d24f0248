"""The plugins for TensorRT, built to run on this machine's processor."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.cuda_host import library
from tests.cuda_host.library import FLAGS, KERNELS, TOP

PLUGINS = TOP / "export" / "plugins" / "tensorrt"


def build() -> Path:
    """Compile the library that TensorRT loads, unless that was done before.

    Raises:
        subprocess.CalledProcessError: the sources do not compile; the compiler has said why.
    """
    kernels = library.build()
    sources = sorted(PLUGINS.glob("*.cc"))
    read = [*sources, *sorted(PLUGINS.glob("*.h"))]
    contents = b"".join(path.read_bytes() for path in read)
    arguments: list[str | Path] = ["-fvisibility=hidden", f"-I{KERNELS}", *sources, kernels]
    key = hashlib.sha256(repr((FLAGS, arguments)).encode() + contents).hexdigest()
    return library.compiled(f"tensorrt-{key[:16]}.so", arguments)
