"""Texts: what is read, and what is refused before a tokenizer sees it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.bundle.text import word_level
from tokenfold.inference.errors import InvalidRequest
from tokenfold.inference.texts import MAX_CHARACTERS, describe, encode, readable

ENCODER = word_level(("red", "blue"), 6)


@given(st.text(max_size=50))
def test_control_characters_and_nothing_else_are_refused(text: str) -> None:
    kinds = {unicodedata.category(one) for one in text if one not in "\t\n\r"}
    if not text.strip() or kinds & {"Cc", "Cs"}:
        with pytest.raises(ValueError, match=r"empty|unreadable"):
            readable(text)
    else:
        assert readable(text) == text


def test_lengths() -> None:
    assert readable("a" * MAX_CHARACTERS)
    with pytest.raises(ValueError, match="at most"):
        readable("a" * (MAX_CHARACTERS + 1))
    with pytest.raises(ValueError, match="at most"):
        readable(" " * (MAX_CHARACTERS + 1))


@pytest.mark.parametrize("length", [1, MAX_CHARACTERS])
def test_short_and_long_ones_are_encoded_alike(length: int) -> None:
    texts = ["red " * (length // 4 + 1), "blue"]
    long, short = encode(ENCODER, texts, "question")
    assert describe(short, pieces=True) == {
        "tokens": 3,
        "cut": False,
        "pieces": ("[CLS]", "blue", "[SEP]"),
    }
    assert describe(long, pieces=False) == {
        "tokens": min(6, length // 4 + 3),
        "cut": length > 4 * 4,
    }


@pytest.mark.parametrize("filling", [1, MAX_CHARACTERS])
def test_nothing_left_to_read_names_the_text(filling: int) -> None:
    texts = ["red" * (filling // 3), "\u200b"]
    texts[0] = texts[0] or "red"
    with pytest.raises(InvalidRequest, match=r"question\.1: is empty"):
        encode(ENCODER, texts, "question")
