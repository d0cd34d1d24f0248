"""Tokenizing texts: from a string to a network's input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, processors

TOKENIZER = "tokenizer.json"

# Characters per token that are encoded at first, and the longest word that BERT splits.
_CHARACTERS_PER_TOKEN = 64
_LONGEST_WORD = 100

PADDING, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


def _fillable(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"{template!r} must hold exactly one {{}}, which the label replaces")
    return template


Template = Annotated[str, AfterValidator(_fillable)]
"""Text in which a label replaces `{}`."""


class Encoded(NamedTuple):
    """A tokenized text.

    Attributes:
        ids: (T,) int64, special tokens included.
        tokens: readable form of each id, without padding, so that their number is the length of
            the text.
        cut: whether the text was truncated.
    """

    ids: npt.NDArray[np.int64]
    tokens: tuple[str, ...]
    cut: bool


class EmptyTextError(ValueError):
    """A text without any token."""


class TextEncoder:
    """A tokenizer with the maximum length of its network; safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, most_tokens: int, padding: int | None = None) -> None:
        """Replace the tokenizer's own padding and truncation.

        Args:
            most_tokens: maximum length, special tokens included; larger than their number.
            padding: token id that fills texts up to `most_tokens`, for a network that attends to
                padding (SigLIP); None for no padding.

        Raises:
            ValueError: `most_tokens` leaves no room for a word, or `padding` is not a token id.
        """
        special = tokenizer.num_special_tokens_to_add(False)
        if most_tokens <= special:
            raise ValueError(
                f"most_tokens is {most_tokens}; it must be larger than the {special} special tokens"
            )
        if padding is not None and tokenizer.id_to_token(padding) is None:
            raise ValueError(f"the padding token {padding} is not in the tokenizer's vocabulary")
        tokenizer.no_padding()
        tokenizer.enable_truncation(most_tokens)
        self._tokenizer = tokenizer
        self.most_tokens = most_tokens
        self.padding = padding
        self.vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
        """Size of the vocabulary: all ids are below it."""

    @classmethod
    def open(cls, path: Path, most_tokens: int, padding: int | None = None) -> Self:
        """Read a `tokenizer.json`; see the constructor for the other arguments.

        Raises:
            ValueError: the file is missing or damaged; the message names it.
        """
        tokenizer = read_tokenizer(path)
        try:
            return cls(tokenizer, most_tokens, padding)
        except ValueError as error:
            raise ValueError(f"{path}: no readable tokenizer: {error}") from error

    def encode(self, text: str) -> Encoded:
        """Tokenize a text; a text that is too long is truncated before the last special token.

        Raises:
            EmptyTextError: the text is blank, or has only characters that the tokenizer drops.
        """
        # JSON allows half a surrogate pair, which the library does not take.
        encoding = self._encode(text.encode("utf-8", "replace").decode("utf-8"))
        if not text.strip() or all(encoding.special_tokens_mask):
            raise EmptyTextError("The text is empty.")
        ids = np.array(encoding.ids, np.int64)
        if self.padding is not None:
            missing = self.most_tokens - len(ids)
            ids = np.pad(ids, (0, missing), constant_values=self.padding)
        return Encoded(
            ids=ids,
            tokens=tuple(map(self._read, encoding.ids, encoding.tokens)),
            cut=bool(encoding.overflowing),
        )

    def _encode(self, text: str) -> Encoding:
        """Encode no more of the text than needed, because encoding a megabyte takes seconds."""
        length = _CHARACTERS_PER_TOKEN * self.most_tokens
        while length < len(text):
            encoding = self._tokenizer.encode(text[:length])
            # The last word may have been cut, and then has other tokens than the whole word.
            if (
                encoding.overflowing
                and max(end for _, end in encoding.offsets) < length - _LONGEST_WORD
            ):
                return encoding
            length *= 4
        return self._tokenizer.encode(text)

    def _read(self, token_id: int, token: str) -> str:
        # Byte-level tokens use a special alphabet until they are decoded.
        return self._tokenizer.decode([token_id], skip_special_tokens=False).strip() or token

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json`, without `most_tokens` and `padding`."""
        self._tokenizer.save(str(path))


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        ValueError: the file is missing or damaged; the message names it.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for all errors
        raise ValueError(f"{path}: no readable tokenizer: {error}") from error


def word_level(words: Sequence[str], most_tokens: int, *, padded: bool = False) -> TextEncoder:
    """Return a tokenizer with a fixed vocabulary of words, which ignores case.

    Ids 0 to 3 are padding, unknown word, start and end; the words follow in order. Punctuation
    marks are separate words. An encoded text is `[CLS] ... [SEP]`.

    Args:
        padded: whether texts are filled up to `most_tokens`.

    Raises:
        ValueError: a word is listed twice.
    """
    known = [PADDING, UNKNOWN, START, END, *words]
    ids = {word: at for at, word in enumerate(known)}
    if len(ids) != len(known):
        duplicates = sorted({word for word in known if known.count(word) > 1})
        raise ValueError(f"duplicate words: {', '.join(duplicates)}")
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return TextEncoder(tokenizer, most_tokens, ids[PADDING] if padded else None)


def random_texts(
    text: TextEncoder, lengths: Sequence[int], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Draw texts of random tokens, to verify and to measure with.

    Args:
        lengths: tokens of each text, special tokens included.

    Returns:
        Token ids and sizes, (B, T) each, padded to the longest text with size 0.
    """
    draw = np.random.default_rng(seed)
    # Special tokens are at either end of the vocabulary, and at either end of a text.
    first, *_, last = text.encode("a").ids.tolist()
    lowest = text.vocabulary // 8
    ids = np.full((len(lengths), max(lengths)), last, dtype=np.int64)
    size = np.zeros(ids.shape, dtype=np.float32)
    for row, length in enumerate(lengths):
        words = draw.integers(lowest, max(text.vocabulary - 1, lowest + 1), length - 2)
        ids[row, :length] = [first, *words, last]
        size[row, :length] = 1.0
    return ids, size
