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

MOST = 16


def test_clip_ids_match_transformers(tmp_path: Path) -> None:
    words = write_clip_tokenizer(tmp_path / "old")
    make: Any = transformers.CLIPTokenizer
    old = tmp_path / "old"
    theirs = make(vocab=str(old / "vocab.json"), merges=str(old / "merges.txt"))
    theirs.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").exists()
    for folder in ("old", "new"):
        ours = tokenizer.read(tmp_path / folder, MOST)
        assert ours.vocabulary == words
        assert ours.padding is None
        for text in (*TRICKY, *CORPUS):
            wanted = theirs(text, truncation=True, max_length=MOST)["input_ids"]
            assert ours.encode(text).ids.tolist() == wanted, text


def test_clip_tokens_are_decoded_without_word_ends(tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path)
    ours = tokenizer.read(tmp_path, MOST)
    tokens = ours.encode("A photo of a CAT, naïve").tokens
    assert tokens[:5] == ("<|startoftext|>", "a", "photo", "of", "a")
    assert tokens[-2:] == ("naïve", "<|endoftext|>")
    ours.save(tmp_path / "tokenizer.json")
    assert tokenizer.read(tmp_path, MOST).encode("A photo of a CAT, naïve").tokens == tokens


def test_a_clip_vocabulary_without_end_token_is_rejected(tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path)
    words = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    del words["<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocab\.json: the token <\|endoftext\|> is missing"):
        tokenizer.read(tmp_path, MOST)


def gemma(folder: Path, **config: Any) -> Any:
    """Return SigLIP 2's tokenizer of `transformers` with a small vocabulary."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, special_tokens=special, show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    make: Any = transformers.Siglip2Tokenizer
    theirs = make(vocab=model["vocab"], merges=merges)
    theirs.save_pretrained(folder)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(content | config))
    return theirs


def test_siglip_2_ids_match_transformers(tmp_path: Path) -> None:
    theirs = gemma(tmp_path, add_bos_token=False, add_eos_token=True)
    ours = tokenizer.read(tmp_path, MOST, siglip=True)
    end, padding = theirs.eos_token_id, theirs.pad_token_id
    for text in CORPUS:
        words = theirs(text, add_special_tokens=False)["input_ids"]
        for written in (text, text.upper()):
            encoded = ours.encode(written)
            wanted = [*words[: MOST - 1], end]
            assert encoded.ids.tolist() == wanted + [padding] * (MOST - len(wanted)), written
            assert encoded.cut == (len(words) >= MOST)


def test_tokenizer_config_sets_the_start_token(tmp_path: Path) -> None:
    theirs = gemma(tmp_path, add_bos_token=True, add_eos_token=True, pad_token={"content": "<unk>"})
    ours = tokenizer.read(tmp_path, MOST, siglip=True)
    assert ours.padding == theirs.unk_token_id
    assert ours.encode("a photo").tokens[0] == "<bos>"


def test_unknown_padding_is_rejected(tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path)
    tokenizer.read(tmp_path, MOST).save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="the padding token is unknown"):
        tokenizer.read(tmp_path, MOST, siglip=True)
