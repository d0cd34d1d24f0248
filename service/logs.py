"""Structured logs: one line per record, with the id of its request."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",  # uvicorn's
}

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _USUAL}


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


class JsonFormatter(logging.Formatter):
    """Formatter of JSON lines: time, level, logger, message, request_id and the `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        current = request_id.get()
        if current is not None:
            line["request_id"] = current
        line |= _extra(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Formatter of plain text for a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s")

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """See logging.Formatter."""
        # An exception may repeat the caller's input, which must not look like a line of the log.
        lines = super().formatException(ei).split("\n")
        return "\n".join("  " + _escaped(line) for line in lines)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """See logging.Formatter."""
        parts = [super().formatMessage(record)]
        parts += [f"{name}={value}" for name, value in _extra(record).items()]
        current = request_id.get()
        if current is not None:
            parts.append(f"request_id={current}")
        # A path or a header may contain line breaks, which must not split a record.
        return _escaped(" ".join(parts))


def configure(level: str, style: Literal["json", "text"]) -> None:
    """Send every log line and warning of the process to stderr, in one style."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Pillow logs the details of every image at lower levels.
    logging.getLogger("PIL").setLevel(logging.WARNING)
    logging.captureWarnings(True)
