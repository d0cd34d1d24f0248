"""Texts of a request: checked before they reach a tokenizer, then encoded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenfold.bundle.text import EmptyTextError, Encoded, TextEncoder
from tokenfold.inference.errors import EmptyText

MAX_CHARACTERS = 4096
"""Characters of a text; the longest text that a network reads has some hundreds."""

# Control characters except tab and line breaks, and halves of surrogate pairs.
_UNREADABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def readable(text: str) -> str:
    """Return a text unchanged.

    Raises:
        ValueError: the text is blank, too long, or has unreadable characters.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    if not text.strip():
        raise ValueError("is empty")
    if (unreadable := _UNREADABLE.search(text)) is not None:
        raise ValueError(f"contains the unreadable character U+{ord(unreadable[0]):04X}")
    return text


def encode(encoder: TextEncoder, texts: Sequence[str], field: str) -> list[Encoded]:
    """Encode readable texts as token ids.

    Args:
        encoder: of the model.
        texts: the texts.
        field: the caller's name of the texts, for the error.

    Raises:
        EmptyText: a text has no words.
    """
    encoded = []
    for index, text in enumerate(texts):
        try:
            encoded.append(encoder.encode(text))
        except EmptyTextError:
            raise EmptyText(field, index) from None
    return encoded


def describe(text: Encoded, *, pieces: bool) -> dict[str, Any]:
    """Return a text's description in a result: its tokens, and whether it was cut."""
    # The ids of some networks include padding, which the caller did not write.
    description: dict[str, Any] = {"tokens": len(text.tokens), "cut": text.cut}
    if pieces:
        description["pieces"] = text.tokens
    return description
