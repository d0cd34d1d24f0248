"""Reader of SentencePiece's vocabulary files (`spiece.model`), without its library.

The file is a protocol buffer. A unigram tokenizer needs three of its fields: the pieces with their
scores and kinds, the type of the model, and the normalisation table of characters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tokenfold.models.checkpoints.checkpoint import CheckpointError

# Field numbers in SentencePiece's `sentencepiece_model.proto`.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, KIND = 1, 2, 3
MODEL_TYPE, UNIGRAM = 3, 1
CHARACTERS = 2
NORMAL, UNKNOWN, CONTROL = 1, 2, 3

# Wire types of a field's value.
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5

END = "</s>"


class Vocabulary(NamedTuple):
    """Content of a vocabulary file.

    Attributes:
        pieces: text and log-probability of each piece, by id.
        control: control pieces, which no text contains.
        unknown: id of the unknown piece.
        characters: SentencePiece's compiled normalisation table; empty for none.
    """

    pieces: list[tuple[str, float]]
    control: list[str]
    unknown: int
    characters: bytes


def read(file: Path) -> Vocabulary:
    """Read the vocabulary of a unigram model.

    Raises:
        CheckpointError: the file is damaged, or holds another type of model.
    """
    try:
        return _vocabulary(file.read_bytes())
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{file}: {error}") from error


def tokenizer(file: Path) -> Tokenizer:
    """Build a tokenizer that ends texts with `</s>`; spaces are part of the pieces.

    Raises:
        CheckpointError: as `read`, or the vocabulary lacks `</s>`.
    """
    vocabulary = read(file)
    try:
        result = Tokenizer(models.Unigram(vocabulary.pieces, vocabulary.unknown, False))
        steps: list[normalizers.Normalizer] = []
        if vocabulary.characters:
            steps.append(normalizers.Precompiled(vocabulary.characters))
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        result.normalizer = normalizers.Sequence(steps)
    except Exception as error:  # the library raises plain Exceptions
        raise CheckpointError(f"{file}: {error}") from error
    result.pre_tokenizer = pre_tokenizers.Metaspace()
    result.decoder = decoders.Metaspace()
    end = result.token_to_id(END)
    if end is None:
        raise CheckpointError(f"{file}: the piece {END} is missing")
    special = [*vocabulary.control, vocabulary.pieces[vocabulary.unknown][0]]
    result.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    result.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, end)]
    )
    return result


def _vocabulary(content: bytes) -> Vocabulary:
    pieces: list[tuple[str, float]] = []
    control: list[str] = []
    unknown, model_type, characters = None, UNIGRAM, b""
    for field, value in _fields(content):
        if field == PIECES and isinstance(value, bytes):
            text, score, piece_kind = _piece(value)
            if piece_kind == UNKNOWN:
                unknown = len(pieces)
            elif piece_kind == CONTROL:
                control.append(text)
            pieces.append((text, score))
        elif field == TRAINER and isinstance(value, bytes):
            types = [entry for inner, entry in _fields(value) if inner == MODEL_TYPE]
            model_type = types[-1] if types and isinstance(types[-1], int) else UNIGRAM
        elif field == NORMALIZER and isinstance(value, bytes):
            tables = [entry for inner, entry in _fields(value) if inner == CHARACTERS]
            characters = tables[-1] if tables and isinstance(tables[-1], bytes) else b""
    if model_type != UNIGRAM:
        raise ValueError(
            "not a unigram model; if there is a tokenizer.json, put it into the folder"
        )
    if not pieces or unknown is None:
        raise ValueError("the vocabulary has no pieces, or no unknown piece")
    return Vocabulary(pieces, control, unknown, characters)


def _piece(content: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for field, value in _fields(content):
        if field == PIECE and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == SCORE and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == KIND and isinstance(value, int):
            kind = value
    return text, score, kind


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a message."""
    offset = 0
    while offset < len(content):
        key, offset = _varint(content, offset)
        field, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            number, offset = _varint(content, offset)
            yield field, number
            continue
        if wire_type == BYTES:
            length, offset = _varint(content, offset)
        elif wire_type in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if wire_type == EIGHT_BYTES else 4
        else:
            raise ValueError("not a vocabulary of SentencePiece")
        if offset + length > len(content):
            raise ValueError("the file is truncated")
        yield field, content[offset : offset + length]
        offset += length


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    """Read a number of seven bits per byte, lowest first; return it and the offset after it."""
    value = shift = 0
    while True:
        byte = content[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset
