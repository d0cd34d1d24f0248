"""Tests of the checks that texts pass before they reach the tokenizer, and of their encoding."""

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
def test_only_blank_texts_and_control_characters_are_refused(text: str) -> None:
    kinds = {unicodedata.category(character) for character in text if character not in "\t\n\r"}
    if not text.strip() or kinds & {"Cc", "Cs"}:
        with pytest.raises(ValueError, match=r"empty|unreadable"):
            readable(text)
    else:
        assert readable(text) == text


def test_texts_longer_than_the_limit_are_refused() -> None:
    assert readable("a" * MAX_CHARACTERS)
    with pytest.raises(ValueError, match="at most"):
        readable("a" * (MAX_CHARACTERS + 1))
    with pytest.raises(ValueError, match="at most"):
        readable(" " * (MAX_CHARACTERS + 1))


@pytest.mark.parametrize("length", [1, MAX_CHARACTERS])
def test_short_and_long_texts_are_encoded_alike(length: int) -> None:
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
def test_the_error_for_a_text_without_tokens_names_the_text(filling: int) -> None:
    texts = ["red" * (filling // 3), "\u200b"]
    texts[0] = texts[0] or "red"
    with pytest.raises(InvalidRequest, match=r"question\.1: is empty"):
        encode(ENCODER, texts, "question")
