"""Small random dual encoders in the formats of their authors' code."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

START, END = "<|startoftext|>", "<|endoftext|>"
CORPUS = [
    "a photo of a cat", "a photo of two dogs on a beach", "it's raining, don't go!",
    "the colour of the car is red 2024", "naïve café", "this is a photo of them",
]  # fmt: skip
PIECES = [
    "<pad>", "</s>", "<unk>", "▁a", "▁photo", "▁of", "▁this", "▁is", "▁cat", "▁two", "▁dog",
    "▁", *"abcdefghijklmnopqrstuvwxyz0123456789", "é",
]  # fmt: skip
CONTROL, UNKNOWN = ("<pad>", "</s>"), "<unk>"

CLIP: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "image_size": 32,
        "patch_size": 8,
        "hidden_act": "quick_gelu",
    },
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 56,
        "max_position_embeddings": 16,
    },
    "projection_dim": 40,
}
SIGLIP: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 56,
        "max_position_embeddings": 16,
        "vocab_size": len(PIECES) + 5,
        "projection_size": 48,
    },
}


@torch.no_grad()
def shake(model: nn.Module) -> None:
    """Draw weights far from zero, so that every part of the network affects the vectors."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        centre = 1.0 if parameter.ndim == 1 and parameter.mean() == 1 else 0.0
        parameter.copy_(centre + 0.2 * noise)


def write_clip_tokenizer(folder: Path) -> int:
    """Write `vocab.json` and `merges.txt` as CLIP does; return the number of words."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[f"{letter}</w>" for letter in sorted(alphabet)],
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))
    words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    words |= {START: len(words), END: len(words) + 1}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    return len(words)


def write_sentence_pieces(folder: Path, pieces: Sequence[str] = PIECES, kind: int = 1) -> Path:
    """Write a `spiece.model` like SentencePiece's library; longer pieces are likelier."""
    content = b""
    for text in pieces:
        score = struct.pack("<f", -8.0 / len(text))
        piece = _field(1, text.encode()) + bytes([2 << 3 | 5]) + score
        if text in CONTROL or text == UNKNOWN:
            piece += bytes([3 << 3, 3 if text in CONTROL else 2])
        content += _field(1, piece)
    content += _field(2, bytes([3 << 3, kind])) + _field(3, _field(1, b"identity"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(content)
    return folder / "spiece.model"


def _field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def write_clip(folder: Path, **changes: Any) -> Any:
    """Write a folder of `CLIPModel` and return its network."""
    words = write_clip_tokenizer(folder)
    text = {"vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1}
    return _write(transformers.CLIPModel, transformers.CLIPConfig, folder, CLIP, text, changes)


def write_siglip(folder: Path, **changes: Any) -> Any:
    """Write a folder of `SiglipModel` and return its network."""
    write_sentence_pieces(folder)
    return _write(transformers.SiglipModel, transformers.SiglipConfig, folder, SIGLIP, {}, changes)


def _write(
    model: Any,
    config: Any,
    folder: Path,
    fields: dict[str, Any],
    text: dict[str, Any],
    changes: dict[str, Any],
) -> Any:
    settings = {**fields, **changes}
    settings["vision_config"] = fields["vision_config"] | changes.get("vision_config", {})
    settings["text_config"] = fields["text_config"] | text | changes.get("text_config", {})
    network = model(config(**settings))
    shake(network)
    network.eval().save_pretrained(folder)
    return network


class Residual(nn.Module):
    """OpenCLIP's block: attention and MLP after layer norms."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(dim, mlp_dim), "c_proj": nn.Linear(mlp_dim, dim)}
        )
        self.activation = activation

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        hidden = self.activation(self.mlp["c_fc"](self.ln_2(x)))
        out: Tensor = x + self.mlp["c_proj"](hidden)
        return out


class Residuals(nn.Module):
    """OpenCLIP's stack of blocks."""

    def __init__(self, depth: int, dim: int, mlp_dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            Residual(dim, dim // 64, mlp_dim, activation) for _ in range(depth)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class OpenClipImage(nn.Module):
    """OpenCLIP's vision transformer: 64 wide, one head, 16 patches of 8 pixels."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(64))
        self.positional_embedding = nn.Parameter(torch.zeros(17, 64))
        self.proj = nn.Parameter(torch.zeros(64, 40))
        self.conv1 = nn.Conv2d(3, 64, 8, 8, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(64), nn.LayerNorm(64)
        self.transformer = Residuals(3, 64, 96, activation)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.conv1(image).flatten(2).transpose(1, 2)  # (B, 16, 64)
        first = self.class_embedding.expand(len(image), 1, -1)
        x = torch.cat([first, patches], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        out: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return out


class OpenClip(nn.Module):
    """OpenCLIP's CLIP with its names, for up to 16 text tokens; call `shaken` before saving."""

    def __init__(self, vocabulary: int, *, quick: bool) -> None:
        super().__init__()
        activation = QuickGELU() if quick else nn.GELU()
        self.visual = OpenClipImage(activation)
        self.transformer = Residuals(2, 128, 160, activation)
        self.token_embedding = nn.Embedding(vocabulary, 128)
        self.positional_embedding = nn.Parameter(torch.zeros(16, 128))
        self.ln_final = nn.LayerNorm(128)
        self.text_projection = nn.Parameter(torch.zeros(128, 40))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    @classmethod
    def shaken(cls, vocabulary: int, *, quick: bool) -> OpenClip:
        model = cls(vocabulary, quick=quick)
        shake(model)
        return model.eval()

    def encode_text(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to (B, 40), pooling the token with the highest id."""
        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x, mask))
        out: Tensor = x[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection
        return out

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """Return the logits of images with texts."""
        images = F.normalize(self.visual(image), dim=-1)
        texts = F.normalize(self.encode_text(ids), dim=-1)
        return self.logit_scale.exp() * images @ texts.T
