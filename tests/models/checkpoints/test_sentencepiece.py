"""SentencePiece files, read without its library."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.published_dual import PIECES, write_sentence_pieces
from tokenfold.bundle.text import EmptyTextError
from tokenfold.models.checkpoints import sentencepiece, tokenizer
from tokenfold.models.checkpoints.checkpoint import CheckpointError


def test_vocabulary_is_read(tmp_path: Path) -> None:
    vocabulary = sentencepiece.read(write_sentence_pieces(tmp_path))
    assert [piece for piece, _ in vocabulary.pieces] == PIECES
    assert vocabulary.pieces[4][1] == pytest.approx(-8 / 6)
    assert (vocabulary.unknown, vocabulary.control, vocabulary.characters) == (
        2,
        ["<pad>", "</s>"],
        b"",
    )


def test_texts_are_split_into_the_likeliest_pieces(tmp_path: Path) -> None:
    write_sentence_pieces(tmp_path)
    encoder = tokenizer.read(tmp_path, 12, siglip=True)
    encoded = encoder.encode("  This is a PHOTO,  of   two dogs!")
    assert encoded.tokens == ("this", "is", "a", "photo", "of", "two", "dog", "s", "</s>")
    assert encoded.ids.tolist() == [6, 7, 3, 4, 5, 9, 10, PIECES.index("s"), 1, 1, 1, 1]
    assert encoder.encode("é 狗").ids.tolist()[:5] == [11, PIECES.index("é"), 11, 2, 1]
    assert encoder.padding == 1
    assert encoder.vocabulary == len(PIECES)
    with pytest.raises(EmptyTextError):
        encoder.encode("...!")


def test_tokenizer_survives_saving(tmp_path: Path) -> None:
    write_sentence_pieces(tmp_path)
    encoder = tokenizer.read(tmp_path, 12, siglip=True)
    encoder.save(tmp_path / "tokenizer.json")
    reloaded = tokenizer.read(
        tmp_path, 12, siglip=True
    )  # from tokenizer.json, which takes precedence
    for text in ("A photo, of two DOGS", "is it a cat? no."):
        assert reloaded.encode(text).ids.tolist() == encoder.encode(text).ids.tolist()
        assert reloaded.encode(text).tokens == encoder.encode(text).tokens


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no pieces"),
        (b"\x0a", "index out of range"),
        (b"\x0a\x50abc", "truncated"),
        (b"\x0b", "not a vocabulary of SentencePiece"),
        (b"\x0a\x05\x0a\x03abc", "no unknown piece"),
    ],
)
def test_damaged_files_are_rejected(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"spiece\.model: .*{message}"):
        tokenizer.read(tmp_path, 12, siglip=True)


def test_other_model_types_are_rejected(tmp_path: Path) -> None:
    write_sentence_pieces(tmp_path, kind=2)
    with pytest.raises(CheckpointError, match="not a unigram model"):
        tokenizer.read(tmp_path, 12, siglip=True)
    write_sentence_pieces(tmp_path, [piece for piece in PIECES if piece != "</s>"])
    with pytest.raises(CheckpointError, match="the piece </s> is missing"):
        tokenizer.read(tmp_path, 12, siglip=True)
    (tmp_path / "spiece.model").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer \(tokenizer\.json, or spiece"):
        tokenizer.read(tmp_path, 12, siglip=True)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    file = tmp_path_factory.mktemp("noise") / "spiece.model"
    file.write_bytes(noise)
    with pytest.raises(CheckpointError):
        sentencepiece.read(file)
