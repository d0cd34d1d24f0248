"""TensorRT's log: messages go to Python's logging, and errors into exceptions."""

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import Any

from tokenfold.runtime.tensorrt.plugins import PluginLibrary
from tokenfold.runtime.tensorrt.variant import TensorRTVariant

logger = logging.getLogger(__name__)

_NO_GPU = "Error Code 1: Cuda Runtime"
# The first error names the cause. The limit is for errors that are never popped.
_MAX_ERRORS = 16


class Journal:
    """Log of the messages of TensorRT's builders and runtimes.

    All journals of a variant share one logger, which lives until the process ends: TensorRT keeps
    the first logger that it is given for objects without one, such as the plugin registry, and
    would still call it after it was destroyed.

    Attributes:
        logger: the logger to give to TensorRT.
    """

    def __init__(self, variant: TensorRTVariant, *, ahead: bool = False) -> None:
        """Get the variant's logger.

        Args:
            ahead: whether this process builds without a GPU. The missing GPU is then no error, for
                any journal of this process.
        """
        self.logger = _logger(variant)
        self.logger.ahead = self.logger.ahead or ahead

    def failure_reason(self, plugins: PluginLibrary | None) -> str:
        """Return the errors of TensorRT and the plugins in this thread, for an error message."""
        reasons = [self.pop_error() or "TensorRT gives no reason"]
        if plugins is not None and (plugin_error := plugins.last_error()):
            reasons.append(plugin_error)
        return "; ".join(reasons)

    def pop_error(self) -> str | None:
        """Return this thread's first error, in one line, and forget its errors."""
        lines: list[str] = self.logger.errors.lines
        first_error = lines[0] if lines else None
        lines.clear()
        return first_error


class _Errors(threading.local):
    """Errors of each thread: TensorRT calls the logger in the thread that called TensorRT."""

    def __init__(self) -> None:
        self.lines: list[str] = []


@cache
def _logger(variant: TensorRTVariant) -> Any:
    api = variant.api
    error_severities = (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR)

    class Logger(api.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.ahead = False
            self.errors = _Errors()

        def log(self, severity: Any, text: str) -> None:
            line = " ".join(text.split())
            is_error = severity in error_severities and not (self.ahead and _NO_GPU in line)
            if is_error and len(self.errors.lines) < _MAX_ERRORS:
                self.errors.lines.append(line)
            # Warnings become debug messages: each graph causes a thousand about names that two
            # calls of one function share.
            logger.log(logging.ERROR if is_error else logging.DEBUG, "%s", line)

    return Logger()
