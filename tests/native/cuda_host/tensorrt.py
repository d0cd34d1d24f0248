"""The plugins for TensorRT, built to run on this machine's processor."""

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
    read = [*sources, *sorted(PLUGINS.glob("*.h")), *sorted(RUNTIME.iterdir())]
    contents = b"".join(path.read_bytes() for path in read)
    folders = [f"-I{PLUGINS}", f"-I{KERNELS}", f"-I{RUNTIME}"]
    arguments: list[str | Path] = [*flags, *folders, *sources, kernels]
    key = hashlib.sha256(repr((FLAGS, arguments)).encode() + contents).hexdigest()
    return library.compiled(f"{name}-{key[:16]}.so", arguments)


def build() -> Path:
    """Compile the library that TensorRT loads, unless that was done before.

    Raises:
        subprocess.CalledProcessError: the sources do not compile; the compiler has said why.
    """
    return _compiled("tensorrt", ["-fvisibility=hidden"])


def build_host() -> Path:
    """Compile the plugins with what plays TensorRT, and counts what they allocate.

    Raises:
        subprocess.CalledProcessError: the sources do not compile; the compiler has said why.
    """
    wrapped = (f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc"))
    flags = ["-static-libstdc++", "-Wl,--exclude-libs,ALL", *wrapped]
    return _compiled("tensorrt_host", flags, HERE / "tensorrt_host.cc")
