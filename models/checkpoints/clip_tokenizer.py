"""CLIP's and SigLIP's ways with texts, where a tokenizer's file does not say them all."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tokenfold.bundle.text import TextEncoder
from tokenfold.models.checkpoints.checkpoint import CheckpointError

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)

SIGLIP_END = "</s>"
GEMMA_START, GEMMA_END, GEMMA_PADDING = "<bos>", "<eos>", "<pad>"


def is_clip(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has CLIP's special tokens."""
    return None not in (tokenizer.token_to_id(CLIP_START), tokenizer.token_to_id(CLIP_END))


def clip(pieces: Path, merges: Path) -> Tokenizer:
    """CLIP's from `vocab.json` and `merges.txt`, where `</w>` marks the end of a word.

    Raises:
        CheckpointError: its special tokens are not among the words.
    """
    model = models.BPE.from_file(
        str(pieces), str(merges), unk_token=CLIP_END, end_of_word_suffix=WORD_END
    )
    tokenizer = Tokenizer(model)
    start, end = tokenizer.token_to_id(CLIP_START), tokenizer.token_to_id(CLIP_END)
    if start is None or end is None:
        absent = CLIP_END if end is None else CLIP_START
        raise CheckpointError(f"{pieces}: {absent} is not in it")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([CLIP_START, CLIP_END])
    tokenizer.post_processor = processors.RobertaProcessing(
        (CLIP_END, end), (CLIP_START, start), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def readable(tokenizer: Tokenizer) -> Tokenizer:
    """CLIP's, whose tokens would read `dog</w>`."""
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(WORD_END, " ")])
    return tokenizer


def check_end(encoder: TextEncoder, end: int | None, where: str) -> None:
    """CLIP's vector is that of the end of a text, which here is a text's last token.

    Args:
        end: the id by which the network finds it; None where it takes the highest one.

    Raises:
        CheckpointError: texts of this tokenizer end in another one.
    """
    ids = encoder.encode("a").ids.tolist()
    wanted = max(ids) if end is None else end
    if ids[-1] != wanted:
        raise CheckpointError(
            f"{where}: texts end in token {ids[-1]}, but the network looks for token {wanted}"
        )


def siglip(tokenizer: Tokenizer, config: Mapping[str, Any]) -> Tokenizer:
    """SigLIP's, with what its networks were trained with whether or not the file says it.

    All texts are in lower case. SigLIP's also lose their punctuation, and SigLIP 2's end, and may
    begin, as `tokenizer_config.json` says: `transformers` adds these tokens by itself.
    """
    # Punctuation falls before the steps of the file, for which it makes no odds where it is there.
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()]
    if isinstance(tokenizer.model, models.Unigram):
        steps += [
            normalizers.Replace(Regex(f"[{_escaped(string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    own = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([*steps, *([] if own is None else [own])])
    ends = config.get("add_eos_token")
    start, end = tokenizer.token_to_id(GEMMA_START), tokenizer.token_to_id(GEMMA_END)
    if isinstance(ends, bool) and start is not None and end is not None:
        begins = config.get("add_bos_token") is True
        template = [*([GEMMA_START] if begins else []), "$A", *([GEMMA_END] if ends else [])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(template), special_tokens=[(GEMMA_START, start), (GEMMA_END, end)]
        )
    return tokenizer


def siglip_padding(tokenizer: Tokenizer, config: Mapping[str, Any], where: str) -> int:
    """The id that SigLIP's texts are filled up with: SigLIP's own is its end.

    Raises:
        CheckpointError: neither the configuration nor the vocabulary says it.
    """
    named = config.get("pad_token")
    if isinstance(named, dict):
        named = named.get("content")
    for token in (named, SIGLIP_END, GEMMA_PADDING):
        found = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if found is not None:
            return int(found)
    raise CheckpointError(f"{where}: which token texts are padded with is not known")


def _escaped(characters: str) -> str:
    """For a class of a regular expression."""
    return "".join(f"\\{character}" for character in characters)
