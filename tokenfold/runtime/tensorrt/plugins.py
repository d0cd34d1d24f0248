"""Register the plugin library with TensorRT."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenfold.runtime import libraries
from tokenfold.runtime.tensorrt.variant import TensorRTError, TensorRTVariant


class PluginLibrary(NamedTuple):
    """The ops as TensorRT plugins, registered until the process ends.

    Attributes:
        fingerprint: identifies this build of the library; see `libraries.fingerprint`.
    """

    fingerprint: str
    handle: ctypes.CDLL

    def last_error(self) -> str:
        """Return the last error message of a plugin in this thread, or an empty string.

        TensorRT itself only reports that a plugin failed.
        """
        message: bytes = self.handle.TokenfoldTensorRtProblem()
        return message.decode()


def register(variant: TensorRTVariant, path: Path | None = None) -> PluginLibrary | None:
    """Register the plugin library; return None if it is not built.

    Args:
        path: the library; None to use the one that `libraries.find` returns.

    Raises:
        TensorRTError: TensorRT does not accept the library.
        FileNotFoundError: see `libraries.find`.
    """
    path = path or libraries.find("tensorrt")
    return None if path is None else _register(variant, path.resolve())


@cache
def _register(variant: TensorRTVariant, path: Path) -> PluginLibrary:
    try:
        handle = ctypes.CDLL(str(path))
        handle.TokenfoldTensorRtProblem.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise TensorRTError(f"{path} is not a plugin library: {error}") from error
    if not variant.api.get_plugin_registry().load_library(str(path)):
        raise TensorRTError(f"{variant.version} does not accept the plugins in {path}")
    return PluginLibrary(libraries.fingerprint(path), handle)
