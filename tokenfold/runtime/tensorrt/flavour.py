"""Which TensorRT there is: the full one, 10 or 11, or TensorRT for RTX, which have one interface.

TensorRT for RTX builds engines where there is no GPU, for those of the compute capabilities that it
knows: 9.0, of H100 and H200, is not among them.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import importlib.util
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("tensorrt", "tensorrt-rtx")
"""What `pip install` calls them; the first that is installed is taken."""


class TensorRtError(RuntimeError):
    """TensorRT cannot do what is asked; the message says why."""


class Flavour(NamedTuple):
    """A TensorRT that is loaded.

    Attributes:
        name: one of `NAMES`.
        api: its Python module.
    """

    name: str
    api: Any

    @property
    def version(self) -> str:
        """Such as "tensorrt 11.4.0.106"."""
        return f"{self.name} {self.api.__version__}"

    @property
    def ahead(self) -> tuple[str, ...]:
        """GPUs that it builds engines for without having them, such as "sm_89"."""
        known = getattr(self.api, "ComputeCapability", None)
        if known is None:
            return ()
        return tuple(f"sm_{name[2:]}" for name in known.__members__ if name.startswith("SM"))


def installed() -> tuple[str, ...]:
    """Those of `NAMES` that can be imported, the first to be preferred."""
    return tuple(name for name in NAMES if importlib.util.find_spec(_module(name)) is not None)


def load(name: str | None = None) -> Flavour:
    """A TensorRT; by default the first that is installed.

    Raises:
        TensorRtError: it is not installed, or does not load.
    """
    found = installed()
    if name is None and not found:
        raise TensorRtError("TensorRT is not installed: pip install 'tokenfold[tensorrt]'")
    return _loaded(name or found[0])


@cache
def _loaded(name: str) -> Flavour:
    try:
        if name == "tensorrt-rtx":
            _complete_rtx()
        return Flavour(name, importlib.import_module(_module(name)))
    except (ImportError, OSError) as error:
        raise TensorRtError(f"{name} cannot be loaded: {error}") from error


def _module(name: str) -> str:
    return name.replace("-", "_")


def _complete_rtx() -> None:
    """Let the parser find its library by the name that it asks for.

    For a node with a plugin it opens `libtensorrt_rtx.so`, where the package has `.so.1` alone, and
    ends the process when it does not find it. It looks where it lies itself: so it is loaded from a
    folder of links, one of which has that name. Whoever loads it later gets the same.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None:
        return  # a system's own, which is complete
    package = Path(spec.origin).parent
    links = Path(tempfile.mkdtemp(prefix="tokenfold-tensorrt-"))
    # Not before: the parser looks there whenever it parses.
    atexit.register(shutil.rmtree, links, ignore_errors=True)
    for path in package.glob("*.so.*"):
        (links / path.name).symlink_to(path)
    (links / "libtensorrt_rtx.so").symlink_to(package / "libtensorrt_rtx.so.1")
    for name in ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so.1"):
        ctypes.CDLL(str(links / name), mode=os.RTLD_NOW)
