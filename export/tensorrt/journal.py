"""What TensorRT says: its lines go to the log, and its errors into messages."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from export.tensorrt.flavour import Flavour

logger = logging.getLogger(__name__)

_NO_GPU = "Error Code 1: Cuda Runtime"


class Journal:
    """The logger of a builder or a runtime, and what it took.

    Attributes:
        errors: each in one line, since the last `take`; the first mostly has the cause.
        logger: for TensorRT. It is to outlive whatever is made with it.
    """

    def __init__(self, flavour: Flavour, *, ahead: bool = False) -> None:
        """Args:
        ahead: whether it builds for a GPU that is not here: that there is none is no error then.
        """
        self.errors: list[str] = []
        self._ahead = ahead
        self.logger = _logger_class(flavour)(self)

    def take(self) -> str | None:
        """The first error since the last call."""
        found = self.errors[0] if self.errors else None
        self.errors.clear()
        return found

    def note(self, text: str, *, error: bool) -> None:
        """Take a line."""
        line = " ".join(text.split())
        error = error and not (self._ahead and _NO_GPU in line)
        if error:
            self.errors.append(line)
        # Its warnings are a thousand a graph, of names that two uses of one function share.
        logger.log(logging.ERROR if error else logging.DEBUG, "%s", line)


@cache
def _logger_class(flavour: Flavour) -> Any:
    api = flavour.api
    errors = (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR)

    class Logger(api.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self, journal: Journal) -> None:
            super().__init__()
            self._journal = journal

        def log(self, severity: Any, text: str) -> None:
            self._journal.note(text, error=severity in errors)

    return Logger
