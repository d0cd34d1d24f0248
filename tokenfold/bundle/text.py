"""How a text becomes a network's input. No torch: export and the service share it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, processors

TOKENIZER = "tokenizer.json"

# Characters a token that are looked at first, and the longest word that BERT takes apart.
_CHARACTERS = 64
_WORD = 100

PADDING, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


def _fillable(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"{template!r} does not hold one {{}}, which the label replaces")
    return template


Template = Annotated[str, AfterValidator(_fillable)]
"""What makes a text of a label, in place of its `{}`."""


class Encoded(NamedTuple):
    """A text as a network takes it.

    Attributes:
        ids: (T,) int64, special tokens included.
        tokens: what each id reads as, for people; none for padding, so that their number is the
            text's own length.
        cut: whether the text was longer than the network takes.
    """

    ids: npt.NDArray[np.int64]
    tokens: tuple[str, ...]
    cut: bool


class EmptyTextError(ValueError):
    """A text with nothing in it to read."""


class TextEncoder:
    """A tokenizer, and how many tokens its network takes. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer, most_tokens: int, padding: int | None = None) -> None:
        """Padding and truncation that the tokenizer came with are replaced.

        Args:
            most_tokens: special tokens included; at least one more than these.
            padding: the id that shorter texts are filled up with, to `most_tokens`, for a network
                that reads its padding (SigLIP); None leaves texts as long as they are.

        Raises:
            ValueError: there would be no room for a word, or padding is no id.
        """
        special = tokenizer.num_special_tokens_to_add(False)
        if most_tokens <= special:
            raise ValueError(
                f"{most_tokens} tokens are too few: every text gets {special} special tokens"
            )
        if padding is not None and tokenizer.id_to_token(padding) is None:
            raise ValueError(f"the tokenizer has no token {padding} to pad with")
        tokenizer.no_padding()
        tokenizer.enable_truncation(most_tokens)
        self._tokenizer = tokenizer
        self.most_tokens = most_tokens
        self.padding = padding
        self.vocabulary = max(tokenizer.get_vocab().values(), default=-1) + 1
        """All ids are below it."""

    @classmethod
    def open(cls, path: Path, most_tokens: int, padding: int | None = None) -> Self:
        """Read a `tokenizer.json`; the other arguments as for the class.

        Raises:
            ValueError: there is none, or it is damaged; the message names the file.
        """
        tokenizer = read_tokenizer(path)
        try:
            return cls(tokenizer, most_tokens, padding)
        except ValueError as error:
            raise ValueError(f"{path}: no readable tokenizer: {error}") from error

    def encode(self, text: str) -> Encoded:
        """The ids of a text; what is too long loses its end, but for the last special token.

        Raises:
            EmptyTextError: the text is blank, or only of characters that the tokenizer drops.
        """
        # Half a surrogate pair, which JSON lets through, is no text that the library could take.
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
        """Of as much of the text as holds the tokens that count: a megabyte takes seconds."""
        length = _CHARACTERS * self.most_tokens
        while length < len(text):
            encoding = self._tokenizer.encode(text[:length])
            # A word that ends here by the cut alone might read otherwise as a whole.
            if encoding.overflowing and max(end for _, end in encoding.offsets) < length - _WORD:
                return encoding
            length *= 4
        return self._tokenizer.encode(text)

    def _read(self, token_id: int, token: str) -> str:
        # Byte-level tokens are written in an alphabet of their own until they are decoded.
        return self._tokenizer.decode([token_id], skip_special_tokens=False).strip() or token

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json`; `most_tokens` and `padding` are not read back from it."""
        self._tokenizer.save(str(path))


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        ValueError: there is none, or it is damaged; the message names the file.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a plain Exception for whatever is wrong
        raise ValueError(f"{path}: no readable tokenizer: {error}") from error


def word_level(words: Sequence[str], most_tokens: int, *, padded: bool = False) -> TextEncoder:
    """A tokenizer that knows these words, whatever their case, and no other.

    Ids 0 to 3 are padding, unknown word, start and end; the words follow in their order.
    Punctuation marks are words of their own. A text reads `[CLS] ... [SEP]`.

    Args:
        padded: whether texts are filled up to `most_tokens`.

    Raises:
        ValueError: a word is there twice.
    """
    known = [PADDING, UNKNOWN, START, END, *words]
    ids = {word: at for at, word in enumerate(known)}
    if len(ids) != len(known):
        raise ValueError("a word is there twice")
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
