"""Texts: ids equal those of `transformers`; long texts are truncated, empty ones refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.bundle.text import EmptyTextError, TextEncoder, word_level
from tokenfold.models.checkpoints import tokenizer
from tokenfold.models.checkpoints.checkpoint import CheckpointError

TRICKY = [
    "How many cats are there?",
    "UPPER case and MiXeD",
    "café naïve Ångström",
    "cafe\u0301 with a combining accent",
    "两只狗在玩 two dogs",
    "日本語のテキスト",
    "don't stop -- it's (really) \"quoted\"...",
    "emoji 🐕‍🦺 and 😀!",
    "tabs\tand\nnew\r\nlines   and many    spaces ",
    " leading space",
    "a" * 150,
    "supercalifragilisticexpialidocious",
    "numbers 3.14159 and 1,000,000",
    "soft\u00adhyphen, no\u00a0break, zero\u200bwidth, control\x07",
    "[MASK] and <mask> of [SEP] </s> specials",
    "ß ﬁ ① Ⅷ İstanbul",
    "русский текст Ёж",
    "مرحبا بالعالم",
    "a-b_c/d\\e@f#g$h%i^j&k*l",
]
CORPUS = [
    *TRICKY,
    "the cat sat on the mat",
    "what colour is the car",
    "What colour is it",
    "two dogs are playing",
] * 9
MOST = 16


def wordpiece(folder: Path, **config: Any) -> Any:
    """Return a BERT tokenizer of `transformers` with a small vocabulary."""
    trained = tokenizers.BertWordPieceTokenizer(lowercase=config.get("do_lower_case", True))
    trained.train_from_iterator(CORPUS, vocab_size=400, min_frequency=1, show_progress=False)
    folder.mkdir()
    by_id = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in by_id), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), **config)


def bytelevel(folder: Path, **config: Any) -> Any:
    """Return a RoBERTa tokenizer of `transformers` with a small vocabulary."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        CORPUS,
        vocab_size=400,
        min_frequency=1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
    )
    folder.mkdir()
    trained.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    roberta: Any = transformers.RobertaTokenizer
    return roberta(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        mask_token=tokenizers.AddedToken("<mask>", lstrip=True),  # as in roberta-base
        **config,
    )


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (wordpiece, {}),
        (wordpiece, {"do_lower_case": False}),
        (wordpiece, {"strip_accents": False}),
        (wordpiece, {"tokenize_chinese_chars": False}),
        (bytelevel, {}),
        (bytelevel, {"add_prefix_space": True}),
    ],
)
def test_ids_equal_those_of_transformers(make: Any, config: Any, tmp_path: Path) -> None:
    reference = make(tmp_path / "old", **config)
    reference.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").exists()
    for folder in ("old", "new"):
        ours = tokenizer.read(tmp_path / folder, MOST)
        assert ours.vocabulary == len(reference)
        for text in TRICKY:
            expected_ids = reference(text, truncation=True, max_length=MOST)["input_ids"]
            encoded = ours.encode(text)
            assert encoded.ids.tolist() == expected_ids, text
            assert encoded.ids.dtype == np.int64
            assert encoded.cut == (len(reference(text)["input_ids"]) > MOST), text
            assert len(encoded.tokens) == len(expected_ids)


def test_tokens_are_readable(tmp_path: Path) -> None:
    wordpiece(tmp_path / "bert")
    bytelevel(tmp_path / "roberta")
    bert = tokenizer.read(tmp_path / "bert", 40).encode("What colour is the zebra?").tokens
    assert bert[:5] == ("[CLS]", "what", "colour", "is", "the")
    assert any(token.startswith("##") for token in bert)
    roberta = tokenizer.read(tmp_path / "roberta", 40).encode("what colour is it?").tokens
    assert (roberta[0], roberta[-1]) == ("<s>", "</s>")
    assert "colour" in roberta


def test_padding_and_truncation_of_the_file_are_ignored(tmp_path: Path) -> None:
    theirs = wordpiece(tmp_path / "bert")
    inner = theirs.backend_tokenizer
    inner.enable_padding(length=30)
    inner.enable_truncation(4, direction="left")
    inner.save(str(tmp_path / "tokenizer.json"))
    ours = TextEncoder.open(tmp_path / "tokenizer.json", 6)
    short, long = ours.encode("the cat"), ours.encode("the cat sat on the mat")
    assert (len(short.ids), short.cut) == (4, False)
    assert long.tokens == ("[CLS]", "the", "cat", "sat", "on", "[SEP]")
    assert long.cut
    ours.save(tmp_path / "again.json")
    again = TextEncoder.open(tmp_path / "again.json", 40).encode("the cat sat on the mat")
    assert not again.cut


def test_word_level_tokenizers_know_their_words(tmp_path: Path) -> None:
    ours = word_level(["what", "colour", "is", "?", "the", "circle"], 8)
    encoded = ours.encode("What colour is the hexagon?")
    assert encoded.tokens == ("[CLS]", "what", "colour", "is", "the", "[UNK]", "?", "[SEP]")
    assert encoded.ids.tolist() == [2, 4, 5, 6, 8, 1, 7, 3]
    assert (ours.vocabulary, encoded.cut) == (10, False)
    assert ours.encode("what colour is the circle ??").cut
    ours.save(tmp_path / "tokenizer.json")
    again = TextEncoder.open(tmp_path / "tokenizer.json", 8)
    assert again.encode("the circle").ids.tolist() == ours.encode("THE circle").ids.tolist()
    with pytest.raises(ValueError, match="duplicate words: a"):
        word_level(["a", "a"], 8)


@pytest.mark.parametrize("blank", ["", " ", "\t\n\u2003", "\x00\x01"])
def test_empty_texts_are_refused(blank: str) -> None:
    with pytest.raises(EmptyTextError, match="empty"):
        word_level(["a"], 8).encode(blank)


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    ours = word_level(["a", "?"], 8)
    assert ours.encode("a \ud800").tokens == ours.encode("a ?").tokens


@given(st.text(), st.integers(3, 12))
def test_texts_of_any_length_fit(text: str, max_tokens: int) -> None:
    ours = word_level(["a", "b", "."], max_tokens)
    try:
        encoded = ours.encode(text)
    except EmptyTextError:
        return
    padded = word_level(["a", "b", "."], max_tokens, padded=True).encode(text)
    assert padded.ids.tolist() == encoded.ids.tolist() + [0] * (max_tokens - len(encoded.ids))
    assert padded[1:] == encoded[1:]
    assert 3 <= len(encoded.ids) <= max_tokens
    assert encoded.ids[0] == 2
    assert encoded.ids[-1] == 3
    assert all(0 <= at < ours.vocabulary for at in encoded.ids)
    assert not encoded.cut or len(encoded.ids) == max_tokens


@pytest.mark.parametrize("make", [wordpiece, bytelevel])
@pytest.mark.parametrize(
    "text",
    [
        "the cat " * 300_000,
        "两只狗在玩" * 100_000,
        "a" * 1500 + " the cat sat " * 1000,
        " \x01" * 20_000 + "the cat sat on the mat " * 40,
        "ab " * 200 + "b" * 3000,
    ],
)
def test_the_end_of_long_texts_is_not_encoded(make: Any, text: str, tmp_path: Path) -> None:
    reference = make(tmp_path / "long")
    encoded = tokenizer.read(tmp_path / "long", MOST).encode(text)
    # The rest would be truncated; encoding all of it takes seconds.
    expected_ids = reference(text[:50_000], truncation=True, max_length=MOST)["input_ids"]
    assert encoded.ids.tolist() == expected_ids
    assert encoded.cut


def test_threads_share_an_encoder() -> None:
    ours = word_level([f"w{n}" for n in range(50)], 12)
    texts = [" ".join(f"w{(n * k) % 50}" for k in range(1, 15)) for n in range(200)]
    alone = [ours.encode(text).ids.tolist() for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert [encoded.ids.tolist() for encoded in pool.map(ours.encode, texts)] == alone


def test_too_small_a_maximum_is_refused() -> None:
    with pytest.raises(ValueError, match="most_tokens is 2"):
        word_level(["a"], 2)


def test_texts_are_padded_to_the_maximum(tmp_path: Path) -> None:
    plain, ours = word_level(["a", "cat"], 8), word_level(["a", "cat"], 8, padded=True)
    assert (plain.padding, ours.padding) == (None, 0)
    encoded = ours.encode("a cat")
    assert encoded.ids.tolist() == [2, 4, 5, 3, 0, 0, 0, 0]
    assert encoded.ids.dtype == np.int64
    # Tokens do not include padding.
    assert encoded.tokens == ("[CLS]", "a", "cat", "[SEP]")
    assert not encoded.cut
    long = ours.encode("a cat " * 9)
    assert long.ids.tolist() == plain.encode("a cat " * 9).ids.tolist()
    assert long.cut
    with pytest.raises(EmptyTextError):
        ours.encode(" ")
    ours.save(tmp_path / "tokenizer.json")
    again = TextEncoder.open(tmp_path / "tokenizer.json", 6, padding=1)
    assert again.encode("a cat").ids.tolist() == [2, 4, 5, 3, 1, 1]
    for wrong in (6, 999):
        with pytest.raises(ValueError, match=f"padding token {wrong} is not in"):
            TextEncoder.open(tmp_path / "tokenizer.json", 6, padding=wrong)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer \(tokenizer\.json, vocab\.txt"):
        tokenizer.read(tmp_path, 40)
    for content in ("", "{", "[]", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: no readable tokenizer"):
            tokenizer.read(tmp_path, 40)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\ncat\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: missing tokens: \[SEP\]"):
        tokenizer.read(tmp_path, 40)
    (tmp_path / "tokenizer_config.json").write_text('{"sep_token": 5}')
    with pytest.raises(CheckpointError, match="sep_token is not a string"):
        tokenizer.read(tmp_path, 40)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.json").write_text('{"<s>": 0}')
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(CheckpointError):
        tokenizer.read(tmp_path, 40)
