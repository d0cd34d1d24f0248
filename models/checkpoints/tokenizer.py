"""Tokenizer of a checkpoint folder, from `tokenizer.json` or older vocabulary files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from tokenfold.bundle.text import TOKENIZER, TextEncoder, read_tokenizer
from tokenfold.models.checkpoints import clip_tokenizer, hub, sentencepiece
from tokenfold.models.checkpoints.checkpoint import CheckpointError
from tokenfold.models.checkpoints.files import read_json

CONFIG = "tokenizer_config.json"
WORDS = "vocab.txt"
PIECES, MERGES = "vocab.json", "merges.txt"
SENTENCES = "spiece.model"
FILES = (TOKENIZER, CONFIG, WORDS, PIECES, MERGES, SENTENCES)


def read(folder: Path, max_tokens: int, *, siglip: bool = False) -> TextEncoder:
    """Read the tokenizer of a folder.

    Without `tokenizer.json`, BERT has `vocab.txt`, RoBERTa and CLIP have `vocab.json` and
    `merges.txt`, and SigLIP has `spiece.model`.

    Args:
        max_tokens: maximum tokens of a text.
        siglip: whether the tokenizer is SigLIP's, which normalises and pads texts.

    Raises:
        CheckpointError: the folder has none of these files, or they are invalid.
    """
    try:
        config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
        tokenizer = _read(folder, config, siglip)
        if tokenizer is not None and siglip:
            tokenizer = clip_tokenizer.siglip(tokenizer, config)
            padding = clip_tokenizer.siglip_padding(tokenizer, config, str(folder))
            return TextEncoder(tokenizer, max_tokens, padding)
        if tokenizer is not None:
            return TextEncoder(tokenizer, max_tokens)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises plain Exceptions
        raise CheckpointError(f"{folder}: {error}") from error
    raise CheckpointError(
        f"{folder}: no tokenizer ({TOKENIZER}, "
        + (
            f"or {SENTENCES} for SigLIP)"
            if siglip
            else f"{WORDS} for BERT, or {PIECES} with {MERGES} for RoBERTa and CLIP)"
        )
    )


def find(
    folder: Path, repository: str, max_tokens: int, vocabulary: int, *, siglip: bool = False
) -> TextEncoder:
    """Read the folder's tokenizer, or download one from the hub if the folder has none.

    Args:
        repository: repository on the hub whose tokenizer the network was trained with.
        max_tokens: maximum tokens of a text.
        vocabulary: number of word embeddings of the network.
        siglip: as for `read`.

    Raises:
        CheckpointError: neither has a tokenizer, or its vocabulary is larger than the network's.
    """
    source = folder
    if not any((folder / name).exists() for name in FILES):
        try:
            source = hub.fetch_files(repository, FILES)
        except CheckpointError as error:
            raise CheckpointError(
                f"{folder}: no tokenizer, such as {TOKENIZER}, and that of {repository} cannot be "
                f"downloaded: {error}"
            ) from error
    text = read(source, max_tokens, siglip=siglip)
    if text.vocabulary > vocabulary:
        raise CheckpointError(
            f"{source}: the tokenizer has {text.vocabulary} words, the network {vocabulary}"
        )
    return text


def _read(folder: Path, config: Mapping[str, Any], siglip: bool) -> Tokenizer | None:
    if (folder / TOKENIZER).exists():
        tokenizer = read_tokenizer(folder / TOKENIZER)
        return (
            clip_tokenizer.readable(tokenizer) if clip_tokenizer.is_clip(tokenizer) else tokenizer
        )
    if siglip:
        sentences = folder / SENTENCES
        return sentencepiece.tokenizer(sentences) if sentences.exists() else None
    if (folder / WORDS).exists():
        return _bert(folder / WORDS, config)
    pieces, merges = folder / PIECES, folder / MERGES
    if not pieces.exists() or not merges.exists():
        return None
    if clip_tokenizer.CLIP_START in read_json(pieces):
        return clip_tokenizer.readable(clip_tokenizer.clip(pieces, merges))
    return _roberta(pieces, merges, config)


def _bert(words: Path, config: Mapping[str, Any]) -> Tokenizer:
    unknown = _special(config, "unk_token", "[UNK]")
    tokenizer = Tokenizer(
        models.WordPiece.from_file(str(words), unk_token=unknown, max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    start, end = _special(config, "cls_token", "[CLS]"), _special(config, "sep_token", "[SEP]")
    others = [_special(config, "pad_token", "[PAD]"), _special(config, "mask_token", "[MASK]")]
    ids = _ids(tokenizer, words, [start, end, unknown])
    tokenizer.add_special_tokens(_known(tokenizer, [unknown, start, end, *others]))
    tokenizer.post_processor = processors.BertProcessing((end, ids[end]), (start, ids[start]))
    return tokenizer


def _roberta(pieces: Path, merges: Path, config: Mapping[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(str(pieces), str(merges)))
    prefix = bool(config.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    start, end = _special(config, "cls_token", "<s>"), _special(config, "sep_token", "</s>")
    mask = _special(config, "mask_token", "<mask>")
    others = [_special(config, "unk_token", "<unk>"), _special(config, "pad_token", "<pad>")]
    ids = _ids(tokenizer, pieces, [start, end])
    tokenizer.add_special_tokens(_known(tokenizer, [start, end, *others]))
    # As published, the mask token includes the space before it.
    masks = [AddedToken(token, lstrip=True) for token in _known(tokenizer, [mask])]
    tokenizer.add_special_tokens(masks)
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, ids[end]), (start, ids[start]), trim_offsets=True, add_prefix_space=prefix
    )
    return tokenizer


def _special(config: Mapping[str, Any], name: str, default: str) -> str:
    """Return the text of a special token."""
    token = config.get(name) or default
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str):
        raise CheckpointError(f"{CONFIG}: {name} is not a string")
    return token


def _known(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[str]:
    """Return the tokens that have an id; adding others would exceed the network's vocabulary."""
    return [token for token in tokens if tokenizer.token_to_id(token) is not None]


def _ids(tokenizer: Tokenizer, file: Path, tokens: list[str]) -> dict[str, int]:
    ids = {token: tokenizer.token_to_id(token) for token in tokens}
    missing = [token for token, token_id in ids.items() if token_id is None]
    if missing:
        raise CheckpointError(f"{file}: missing tokens: {', '.join(missing)}")
    return {token: token_id for token, token_id in ids.items() if token_id is not None}
