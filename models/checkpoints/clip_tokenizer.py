"""Parts of CLIP's and SigLIP's tokenizers that the tokenizer's files leave out."""

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
    """Build CLIP's tokenizer from `vocab.json` and `merges.txt`; `</w>` marks the end of a word.

    Raises:
        CheckpointError: the vocabulary lacks the special tokens.
    """
    model = models.BPE.from_file(
        str(pieces), str(merges), unk_token=CLIP_END, end_of_word_suffix=WORD_END
    )
    tokenizer = Tokenizer(model)
    start, end = tokenizer.token_to_id(CLIP_START), tokenizer.token_to_id(CLIP_END)
    if start is None or end is None:
        absent = CLIP_END if end is None else CLIP_START
        raise CheckpointError(f"{pieces}: the token {absent} is missing")
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
    """Set a decoder for CLIP's tokenizer, without which tokens read `dog</w>`."""
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(WORD_END, " ")])
    return tokenizer


def check_end(encoder: TextEncoder, end: int | None, where: str) -> None:
    """Check that texts end in the token that CLIP pools; raise CheckpointError otherwise.

    The text tower here pools the last token.

    Args:
        end: id of the token that the network pools; None if it pools the highest id.
        where: start of the message.
    """
    ids = encoder.encode("a").ids.tolist()
    pooled = max(ids) if end is None else end
    if ids[-1] != pooled:
        raise CheckpointError(
            f"{where}: texts end in token {ids[-1]}, but the network pools token {pooled}"
        )


def siglip(tokenizer: Tokenizer, config: Mapping[str, Any]) -> Tokenizer:
    """Add the steps that SigLIP was trained with and that the tokenizer's file may leave out.

    All texts are lower-cased. SigLIP also removes punctuation. SigLIP 2 adds the start and end
    tokens that `tokenizer_config.json` asks for; `transformers` adds them in code.
    """
    # If the file's own steps remove punctuation too, removing it before them changes nothing.
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()]
    if isinstance(tokenizer.model, models.Unigram):
        steps += [
            normalizers.Replace(Regex(f"[{_escaped(string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)
    add_end = config.get("add_eos_token")
    start, end = tokenizer.token_to_id(GEMMA_START), tokenizer.token_to_id(GEMMA_END)
    if isinstance(add_end, bool) and start is not None and end is not None:
        add_start = config.get("add_bos_token") is True
        template = [*([GEMMA_START] if add_start else []), "$A", *([GEMMA_END] if add_end else [])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(template), special_tokens=[(GEMMA_START, start), (GEMMA_END, end)]
        )
    return tokenizer


def siglip_padding(tokenizer: Tokenizer, config: Mapping[str, Any], where: str) -> int:
    """Return the id of SigLIP's padding token; the first SigLIP pads with its end token.

    Raises:
        CheckpointError: neither the configuration nor the vocabulary has a padding token.
    """
    pad_token = config.get("pad_token")
    if isinstance(pad_token, dict):
        pad_token = pad_token.get("content")
    for token in (pad_token, SIGLIP_END, GEMMA_PADDING):
        token_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if token_id is not None:
            return int(token_id)
    raise CheckpointError(
        f"{where}: the padding token is unknown; set pad_token in tokenizer_config.json"
    )


def _escaped(characters: str) -> str:
    """Escape characters for a character class of a regular expression."""
    return "".join(f"\\{character}" for character in characters)
