"""Find and load TensorRT: version 10 or 11, or TensorRT for RTX, which share one interface.

TensorRT for RTX can build engines on a machine without a GPU, for the compute capabilities that it
supports. They do not include 9.0, the one of H100 and H200.
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
"""Package names of the variants, in order of preference."""


class TensorRTError(RuntimeError):
    """TensorRT is missing, or cannot do what was requested. The message gives the reason."""


class TensorRTVariant(NamedTuple):
    """A loaded variant of TensorRT.

    Attributes:
        name: one of `NAMES`.
        api: its Python module.
    """

    name: str
    api: Any

    @property
    def version(self) -> str:
        """Name and version, such as "tensorrt 11.4.0.106"."""
        return f"{self.name} {self.api.__version__}"

    @property
    def aot_architectures(self) -> tuple[str, ...]:
        """GPU architectures, such as "sm_89", that engines can be built for without a GPU."""
        capabilities = getattr(self.api, "ComputeCapability", None)
        if capabilities is None:
            return ()
        return tuple(f"sm_{name[2:]}" for name in capabilities.__members__ if name.startswith("SM"))


def installed() -> tuple[str, ...]:
    """Return the installed variants of `NAMES`, the preferred one first."""
    return tuple(name for name in NAMES if importlib.util.find_spec(_module(name)) is not None)


def load(name: str | None = None) -> TensorRTVariant:
    """Load a variant of TensorRT.

    Args:
        name: one of `NAMES`; None for the first that is installed.

    Raises:
        TensorRTError: the variant is not installed, or cannot be loaded.
    """
    names = installed()
    if name is None and not names:
        raise TensorRTError("TensorRT is not installed: pip install 'tokenfold[tensorrt]'")
    return _load(name or names[0])


@cache
def _load(name: str) -> TensorRTVariant:
    try:
        if name == "tensorrt-rtx":
            _complete_rtx()
        return TensorRTVariant(name, importlib.import_module(_module(name)))
    except (ImportError, OSError) as error:
        raise TensorRTError(f"{name} cannot be loaded: {error}") from error


def _module(name: str) -> str:
    return name.replace("-", "_")


def _complete_rtx() -> None:
    """Make TensorRT for RTX loadable by the file name that its ONNX parser looks for.

    When the parser meets a plugin node, it opens `libtensorrt_rtx.so`, but the package contains
    only `libtensorrt_rtx.so.1`; if the parser does not find the file, it ends the process. The
    parser searches the folder that it was loaded from. So this function loads the libraries from a
    folder of links, which also has a link of the missing name. Later imports use these libraries.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None:
        return  # A system-wide installation, which is complete.
    package = Path(spec.origin).parent
    links = Path(tempfile.mkdtemp(prefix="tokenfold-tensorrt-"))
    # Kept until the process exits: the parser opens the file whenever it parses.
    atexit.register(shutil.rmtree, links, ignore_errors=True)
    for path in package.glob("*.so.*"):
        (links / path.name).symlink_to(path)
    (links / "libtensorrt_rtx.so").symlink_to(package / "libtensorrt_rtx.so.1")
    for name in ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so.1"):
        ctypes.CDLL(str(links / name), mode=os.RTLD_NOW)
