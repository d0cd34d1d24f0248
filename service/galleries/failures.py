"""Classify LanceDB's errors by their texts, because LanceDB has no error classes for them."""

from __future__ import annotations

import logging
import re

from tokenfold.inference.errors import RequestError
from tokenfold.service.errors import StorageFailed, StorageFull

logger = logging.getLogger(__name__)

# ENOSPC, EDQUOT, and EFBIG (a file may not grow any more, for whatever reason).
_FULL = re.compile(r"\(os error (28|122|27)\)|No space left on device|[Qq]uota exceeded")
_CONFLICT = re.compile(r"[Cc]ommit conflict|[Tt]oo many concurrent write|[Pp]lease retry")
_MISSING = re.compile(r"[Nn]ot found")

LanceError = (RuntimeError, ValueError, OSError)
"""Exceptions that LanceDB raises when a table cannot be read or written."""


def is_full(error: Exception) -> bool:
    """Whether the error says that the disk is full."""
    return _FULL.search(str(error)) is not None


def is_conflict(error: Exception) -> bool:
    """Whether another writer committed first, so that a retry can succeed."""
    return _CONFLICT.search(str(error)) is not None


def is_missing(error: Exception) -> bool:
    """Whether the error says that a table does not exist."""
    return _MISSING.search(str(error)) is not None


def storage_error(error: Exception, action: str) -> RequestError:
    """Convert an error of LanceDB to an API error, and log the details.

    Args:
        error: LanceDB's error.
        action: the failed action, such as "adding to gallery holiday".
    """
    if is_full(error):
        logger.error("disk full while %s: %s", action, error)
        return StorageFull(
            f"The storage of the galleries is full: {action} failed. Existing images can still be "
            "read; delete some of them, or provide more space."
        )
    logger.error("failed while %s", action, exc_info=error)
    return StorageFailed(f"{action[:1].upper()}{action[1:]} failed; see the server's log.")
