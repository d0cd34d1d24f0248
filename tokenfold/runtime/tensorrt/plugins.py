"""The library of plugins, registered with TensorRT."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenfold.runtime import libraries
from tokenfold.runtime.tensorrt.flavour import Flavour, TensorRtError


class Plugins(NamedTuple):
    """The ops as plugins, registered as long as the process lives.

    Attributes:
        fingerprint: of their library; see `libraries.fingerprint`.
    """

    fingerprint: str
    handle: ctypes.CDLL

    def problem(self) -> str:
        """What one of them said last in this thread, or nothing: TensorRT only says that it did."""
        said: bytes = self.handle.TokenfoldTensorRtProblem()
        return said.decode()


def registered(flavour: Flavour, path: Path | None = None) -> Plugins | None:
    """The plugins, or None where their library is not built.

    Args:
        path: of the library; by default what `libraries.find` finds.

    Raises:
        TensorRtError: TensorRT does not take the library.
        FileNotFoundError: see `libraries.find`.
    """
    path = path or libraries.find("tensorrt")
    return None if path is None else _registered(flavour, path.resolve())


@cache
def _registered(flavour: Flavour, path: Path) -> Plugins:
    try:
        handle = ctypes.CDLL(str(path))
        handle.TokenfoldTensorRtProblem.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise TensorRtError(f"{path} is no library of plugins: {error}") from error
    if not flavour.api.get_plugin_registry().load_library(str(path)):
        raise TensorRtError(f"{flavour.version} does not take the plugins of {path}")
    return Plugins(libraries.fingerprint(path), handle)
