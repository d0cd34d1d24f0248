"""What LanceDB's errors mean. They have no classes of their own: their texts tell them apart."""

from __future__ import annotations

import logging
import re

from tokenfold.inference.errors import RequestError
from tokenfold.service.errors import StorageFailed, StorageFull

logger = logging.getLogger(__name__)

# ENOSPC, EDQUOT, and EFBIG: a file may not grow any more, for whatever reason.
_FULL = re.compile(r"\(os error (28|122|27)\)|No space left on device|[Qq]uota exceeded")
_CONFLICT = re.compile(r"[Cc]ommit conflict|[Tt]oo many concurrent write|[Pp]lease retry")
_MISSING = re.compile(r"[Nn]ot found")

LanceError = (RuntimeError, ValueError, OSError)
"""What LanceDB raises when a table cannot be read or written."""


def is_full(error: Exception) -> bool:
    """Whether no room is left."""
    return _FULL.search(str(error)) is not None


def is_conflict(error: Exception) -> bool:
    """Whether another writer was first, so that it is worth trying again."""
    return _CONFLICT.search(str(error)) is not None


def is_missing(error: Exception) -> bool:
    """Whether there is no such table."""
    return _MISSING.search(str(error)) is not None


def storage_error(error: Exception, doing: str) -> RequestError:
    """What the caller is told; the log says the rest.

    Args:
        error: LanceDB's.
        doing: what failed, such as "adding to gallery holiday".
    """
    if is_full(error):
        logger.error("disk full while %s: %s", doing, error)
        return StorageFull(
            f"No room is left where galleries are kept: {doing} failed. What is there can still be "
            "read; delete some of it, or give it more room."
        )
    logger.error("failed while %s", doing, exc_info=error)
    return StorageFailed(f"{doing[:1].upper()}{doing[1:]} failed; the server's log says why.")
