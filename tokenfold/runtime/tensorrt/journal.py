"""What TensorRT says: its lines go to the log, and its errors into messages."""

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import Any

from tokenfold.runtime.tensorrt.flavour import Flavour
from tokenfold.runtime.tensorrt.plugins import Plugins

logger = logging.getLogger(__name__)

_NO_GPU = "Error Code 1: Cuda Runtime"
# The first has the cause, and nobody may ever ask.
_MOST = 16


class Journal:
    """What TensorRT says to a builder or a runtime.

    There is one logger for all of them, which is never given back: TensorRT keeps the first that it
    is told of for whatever has none, such as the registry of plugins, and still calls it when it is
    gone.

    Attributes:
        logger: for TensorRT.
    """

    def __init__(self, flavour: Flavour, *, ahead: bool = False) -> None:
        """Args:
        ahead: whether it builds for a GPU that is not here: that there is none is no error then,
            nor for others in this process.
        """
        self.logger = _logger(flavour)
        self.logger.ahead = self.logger.ahead or ahead

    def why(self, plugins: Plugins | None) -> str:
        """What TensorRT and the plugins said last in this thread, for a message."""
        found = [self.take() or "TensorRT does not say why"]
        if plugins is not None and (problem := plugins.problem()):
            found.append(problem)
        return "; ".join(found)

    def take(self) -> str | None:
        """The first error of this thread's calls since the last one of this, in one line."""
        lines: list[str] = self.logger.errors.lines
        found = lines[0] if lines else None
        lines.clear()
        return found


class _Errors(threading.local):
    """Those of a thread: TensorRT tells whoever calls it."""

    def __init__(self) -> None:
        self.lines: list[str] = []


@cache
def _logger(flavour: Flavour) -> Any:
    api = flavour.api
    errors = (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR)

    class Logger(api.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.ahead = False
            self.errors = _Errors()

        def log(self, severity: Any, text: str) -> None:
            line = " ".join(text.split())
            error = severity in errors and not (self.ahead and _NO_GPU in line)
            if error and len(self.errors.lines) < _MOST:
                self.errors.lines.append(line)
            # Its warnings are a thousand a graph, of names that two uses of one function share.
            logger.log(logging.ERROR if error else logging.DEBUG, "%s", line)

    return Logger()
