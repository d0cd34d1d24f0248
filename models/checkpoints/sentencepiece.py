"""SentencePiece's vocabulary files (`spiece.model`), read without its library.

The file is a protocol buffer; of its fields a unigram tokenizer needs the pieces with their scores
and kinds, and the table of the characters' normal forms.
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

# The numbers of fields in SentencePiece's `sentencepiece_model.proto`.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, KIND = 1, 2, 3
MODEL_TYPE, UNIGRAM = 3, 1
CHARACTERS = 2
NORMAL, UNKNOWN, CONTROL = 1, 2, 3

# How a field's value is written.
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5

END = "</s>"


class Vocabulary(NamedTuple):
    """What a file says.

    Attributes:
        pieces: with their log-probabilities, by id.
        control: those that no text contains.
        unknown: the id of what is none of the pieces.
        characters: SentencePiece's own table of normal forms; empty for none.
    """

    pieces: list[tuple[str, float]]
    control: list[str]
    unknown: int
    characters: bytes


def read(file: Path) -> Vocabulary:
    """The vocabulary of a unigram model.

    Raises:
        CheckpointError: the file is damaged, or of another kind of model.
    """
    try:
        return _vocabulary(file.read_bytes())
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{file}: {error}") from error


def tokenizer(file: Path) -> Tokenizer:
    """A tokenizer that ends texts with `</s>`; spaces are part of the pieces.

    Raises:
        CheckpointError: as `read`, or the end is not in it.
    """
    vocabulary = read(file)
    try:
        made = Tokenizer(models.Unigram(vocabulary.pieces, vocabulary.unknown, False))
        steps: list[normalizers.Normalizer] = []
        if vocabulary.characters:
            steps.append(normalizers.Precompiled(vocabulary.characters))
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        made.normalizer = normalizers.Sequence(steps)
    except Exception as error:  # the library raises a plain Exception for whatever is wrong
        raise CheckpointError(f"{file}: {error}") from error
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    end = made.token_to_id(END)
    if end is None:
        raise CheckpointError(f"{file}: {END} is not in it")
    special = [*vocabulary.control, vocabulary.pieces[vocabulary.unknown][0]]
    made.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, end)]
    )
    return made


def _vocabulary(content: bytes) -> Vocabulary:
    pieces: list[tuple[str, float]] = []
    control: list[str] = []
    unknown, kind, characters = None, UNIGRAM, b""
    for field, value in _fields(content):
        if field == PIECES and isinstance(value, bytes):
            text, score, piece_kind = _piece(value)
            if piece_kind == UNKNOWN:
                unknown = len(pieces)
            elif piece_kind == CONTROL:
                control.append(text)
            pieces.append((text, score))
        elif field == TRAINER and isinstance(value, bytes):
            kinds = [found for inner, found in _fields(value) if inner == MODEL_TYPE]
            kind = kinds[-1] if kinds and isinstance(kinds[-1], int) else UNIGRAM
        elif field == NORMALIZER and isinstance(value, bytes):
            tables = [found for inner, found in _fields(value) if inner == CHARACTERS]
            characters = tables[-1] if tables and isinstance(tables[-1], bytes) else b""
    if kind != UNIGRAM:
        raise ValueError("it is no unigram model; where there is a tokenizer.json, put it beside")
    if not pieces or unknown is None:
        raise ValueError("it has no pieces, or none for what is unknown")
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
    """The fields of a message with their numbers."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        field, written = key >> 3, key & 7
        if written == VARINT:
            number, at = _varint(content, at)
            yield field, number
            continue
        if written == BYTES:
            length, at = _varint(content, at)
        elif written in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if written == EIGHT_BYTES else 4
        else:
            raise ValueError("it is no vocabulary of SentencePiece")
        if at + length > len(content):
            raise ValueError("it is cut off")
        yield field, content[at : at + length]
        at += length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
