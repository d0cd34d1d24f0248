"""From the texts of a request to tokens: checked for what no tokenizer should see, then encoded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from tokenfold.bundle.text import EmptyTextError, Encoded, TextEncoder
from tokenfold.service.errors import ApiError, invalid

LONGEST = 4096  # characters of a text; the longest that a network reads have some hundreds
# Control characters but tab and line breaks, and halves of surrogate pairs.
_UNREADABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# Characters in all that are encoded in the event loop: the length of a few questions.
_AT_ONCE = 2000


def readable(text: str) -> str:
    """A text as it came.

    Raises:
        ValueError: it is blank, too long, or holds what is not written.
    """
    if len(text) > LONGEST:
        raise ValueError(f"has {len(text)} characters; at most {LONGEST} are read")
    if not text.strip():
        raise ValueError("is empty")
    if (found := _UNREADABLE.search(text)) is not None:
        raise ValueError(f"holds U+{ord(found[0]):04X}, which is no character to read")
    return text


async def encode(
    encoder: TextEncoder, texts: Sequence[str], field: str, places: Sequence[int] | None = None
) -> list[Encoded]:
    """Readable texts as a network takes them.

    Args:
        field: of the request, to be named in an error.
        places: of the texts in it; by default they are all of them.

    Raises:
        InvalidRequest: nothing of a text is left to read.
    """
    at = range(len(texts)) if places is None else places
    if sum(map(len, texts)) <= _AT_ONCE:
        return _encode(encoder, texts, field, at)
    return await asyncio.to_thread(_encode, encoder, texts, field, at)


def _encode(
    encoder: TextEncoder, texts: Sequence[str], field: str, places: Sequence[int]
) -> list[Encoded]:
    found = []
    for at, text in zip(places, texts, strict=True):
        try:
            found.append(encoder.encode(text))
        except EmptyTextError:
            raise empty(field, at) from None
    return found


def empty(field: str, at: int) -> ApiError:
    """The error of a text without words."""
    return invalid([{"loc": (field, at), "msg": "is empty"}])


def describe(text: Encoded, *, pieces: bool) -> dict[str, Any]:
    """As `schemas.Text` describes it."""
    # Of some networks the ids are more: padding, which nobody wrote.
    told: dict[str, Any] = {"tokens": len(text.tokens), "cut": text.cut}
    if pieces:
        told["pieces"] = text.tokens
    return told
