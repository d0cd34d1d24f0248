"""The TensorRT plugins, built to run on the CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tests.native.cuda_host import library
from tests.native.cuda_host.library import FLAGS, HERE, KERNELS, TOP

PLUGINS = TOP / "native" / "tensorrt"


RUNTIME = HERE / "runtime"


def _compiled(name: str, flags: Sequence[str], *more: Path) -> Path:
    kernels = library.build()
    sources = [*sorted(PLUGINS.glob("*.cc")), *more]
    inputs = [*sources, *sorted(PLUGINS.glob("*.h")), *sorted(RUNTIME.iterdir())]
    contents = b"".join(path.read_bytes() for path in inputs)
    folders = [f"-I{PLUGINS}", f"-I{KERNELS}", f"-I{RUNTIME}"]
    arguments: list[str | Path] = [*flags, *folders, *sources, kernels]
    key = hashlib.sha256(repr((FLAGS, arguments)).encode() + contents).hexdigest()
    return library.compile_library(f"{name}-{key[:16]}.so", arguments)


def build() -> Path:
    """Compile the plugin library, unless it is compiled already; return its path.

    Raises:
        subprocess.CalledProcessError: the compilation failed; the compiler printed the reason.
    """
    return _compiled("tensorrt", ["-fvisibility=hidden"])


def build_host() -> Path:
    """Compile the plugins with a fake TensorRT that counts their allocations; return the path.

    Raises:
        subprocess.CalledProcessError: the compilation failed; the compiler printed the reason.
    """
    wrapped = (f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc"))
    flags = ["-static-libstdc++", "-Wl,--exclude-libs,ALL", *wrapped]
    return _compiled("tensorrt_host", flags, HERE / "tensorrt_host.cc")
