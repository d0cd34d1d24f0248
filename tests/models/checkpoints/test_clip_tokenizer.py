"""CLIP's and SigLIP's tokenizers, compared with `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from tests.bundle.test_text import TRICKY
from tests.models.published_dual import CORPUS, write_clip_tokenizer
from tokenfold.models.checkpoints import tokenizer
from tokenfold.models.checkpoints.checkpoint import CheckpointError

MAX_TOKENS = 16


def test_clip_ids_match_transformers(tmp_path: Path) -> None:
    words = write_clip_tokenizer(tmp_path / "old")
    tokenizer_class: Any = transformers.CLIPTokenizer
    old = tmp_path / "old"
    reference = tokenizer_class(vocab=str(old / "vocab.json"), merges=str(old / "merges.txt"))
    reference.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").exists()
    for folder in ("old", "new"):
        encoder = tokenizer.read(tmp_path / folder, MAX_TOKENS)
        assert encoder.vocabulary == words
        assert encoder.padding is None
        for text in (*TRICKY, *CORPUS):
            expected = reference(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
            assert encoder.encode(text).ids.tolist() == expected, text


def test_clip_tokens_are_decoded_without_word_ends(tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path)
    encoder = tokenizer.read(tmp_path, MAX_TOKENS)
    tokens = encoder.encode("A photo of a CAT, naïve").tokens
    assert tokens[:5] == ("<|startoftext|>", "a", "photo", "of", "a")
    assert tokens[-2:] == ("naïve", "<|endoftext|>")
    encoder.save(tmp_path / "tokenizer.json")
    assert tokenizer.read(tmp_path, MAX_TOKENS).encode("A photo of a CAT, naïve").tokens == tokens


def test_a_clip_vocabulary_without_end_token_is_rejected(tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path)
    words = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    del words["<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocab\.json: the token <\|endoftext\|> is missing"):
        tokenizer.read(tmp_path, MAX_TOKENS)


def gemma(folder: Path, **config: Any) -> Any:
    """Return SigLIP 2's tokenizer of `transformers` with a small vocabulary."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained_tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trained_tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, special_tokens=special, show_progress=False
    )
    trained_tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer_class: Any = transformers.Siglip2Tokenizer
    reference = tokenizer_class(vocab=model["vocab"], merges=merges)
    reference.save_pretrained(folder)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(content | config))
    return reference


def test_siglip_2_ids_match_transformers(tmp_path: Path) -> None:
    reference = gemma(tmp_path, add_bos_token=False, add_eos_token=True)
    encoder = tokenizer.read(tmp_path, MAX_TOKENS, siglip=True)
    end, padding = reference.eos_token_id, reference.pad_token_id
    for text in CORPUS:
        words = reference(text, add_special_tokens=False)["input_ids"]
        for spelling in (text, text.upper()):
            encoded = encoder.encode(spelling)
            expected = [*words[: MAX_TOKENS - 1], end]
            assert encoded.ids.tolist() == expected + [padding] * (MAX_TOKENS - len(expected)), (
                spelling
            )
            assert encoded.cut == (len(words) >= MAX_TOKENS)


def test_tokenizer_config_sets_the_start_token(tmp_path: Path) -> None:
    reference = gemma(
        tmp_path, add_bos_token=True, add_eos_token=True, pad_token={"content": "<unk>"}
    )
    encoder = tokenizer.read(tmp_path, MAX_TOKENS, siglip=True)
    assert encoder.padding == reference.unk_token_id
    assert encoder.encode("a photo").tokens[0] == "<bos>"


def test_unknown_padding_is_rejected(tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path)
    tokenizer.read(tmp_path, MAX_TOKENS).save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="the padding token is unknown"):
        tokenizer.read(tmp_path, MAX_TOKENS, siglip=True)
