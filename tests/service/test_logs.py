"""Tests of the log format."""

from __future__ import annotations

import logging
import sys

from tokenfold.service import logs


def test_a_path_cannot_forge_a_log_line() -> None:
    record = logging.makeLogRecord(
        {"levelname": "INFO", "msg": "GET /a\nINFO b\x1b[0m\x85\u2028é", "status": "\r4"}
    )
    line = logs.TextFormatter().format(record)
    assert line.endswith(r"GET /a\nINFO b\x1b[0m\x85\u2028é status=\r4")
    assert len(line.splitlines()) == 1


def test_a_traceback_cannot_forge_a_log_line() -> None:
    try:
        raise ValueError("a\n2026-01-01 00:00:00,000 INFO     b\x1b[0m\r\u2028c")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    first, *others = logs.TextFormatter().format(record).splitlines()
    assert first.endswith("failed")
    assert all(line.startswith("  ") for line in others)
    assert others[-1] == r"  2026-01-01 00:00:00,000 INFO     b\x1b[0m\r\u2028c"
