"""State dicts of OpenCLIP and OpenAI: parity, and rejection of ambiguous ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.models.published_dual import (
    PIECES,
    OpenClip,
    write_clip_tokenizer,
    write_sentence_pieces,
)
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints import hub
from tokenfold.models.checkpoints.checkpoint import CheckpointError, DualCheckpoint
from tokenfold.models.checkpoints.load import load

TEXTS = ("a photo of a cat", "a photo of two dogs", "naïve")

# The configuration of ViT-B-32 on the hub, with smaller sizes.
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 40,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 128,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}
SIGLIP: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "vit_base_patch8_siglip_32",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 50,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 64,
            "heads": 2,
            "layers": 3,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    "preprocess_cfg": {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}


def dual(source: Path) -> DualCheckpoint:
    checkpoint = load(str(source))
    assert isinstance(checkpoint, DualCheckpoint)
    assert not checkpoint.model.training
    return checkpoint


@torch.no_grad()
def same(checkpoint: DualCheckpoint, reference: OpenClip) -> None:
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    vectors = checkpoint.model.embed_images(image)
    for text in TEXTS:
        ids = torch.from_numpy(checkpoint.text.encode(text).ids)[None]
        logits = checkpoint.model.logits(vectors, checkpoint.model.embed_texts(ids))
        torch.testing.assert_close(logits, reference(image, ids), rtol=0, atol=1e-4)


def write(folder: Path, *, quick: bool, name: str) -> OpenClip:
    model = OpenClip.shaken(write_clip_tokenizer(folder), quick=quick)
    torch.save(model.state_dict(), folder / name)
    return model


def configured(folder: Path, content: dict[str, Any], **model: Any) -> Path:
    """Write a configuration with changes of `model_cfg`; nested objects are merged."""
    model_cfg = content["model_cfg"]
    changed_cfg = {
        key: {**model_cfg[key], **value} if isinstance(value, dict) else value
        for key, value in model.items()
    }
    content_with_changes = {**content, "model_cfg": {**model_cfg, **changed_cfg}}
    (folder / "open_clip_config.json").write_text(json.dumps(content_with_changes))
    return folder


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        ("vit_b_32-laion400m_e32.pt", False),
        ("ViT-B-32-DataComp.pt", False),
        ("vit_b_32-quickgelu-laion400m_e32-46683a32.pt", True),
        ("vit_b_32-openai.pth", True),
    ],
)
def test_the_file_name_tells_the_activation(name: str, quick: bool, tmp_path: Path) -> None:
    reference = write(tmp_path, quick=quick, name=name)
    checkpoint = dual(tmp_path / name)
    same(checkpoint, reference)
    assert checkpoint.model.config.image.activation == ("quick_gelu" if quick else "gelu")
    assert checkpoint.preprocess.resize == "shorter"
    assert checkpoint.preprocess.mean[0] == pytest.approx(0.4815, abs=1e-4)
    assert checkpoint.template == "a photo of a {}."


def test_a_file_name_without_activation_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, quick=True, name="clip.pt")
    with pytest.raises(CheckpointError, match=r"GELU and with QuickGELU; put its open_clip_config"):
        load(str(tmp_path / "clip.pt"))


def test_a_tokenizer_with_another_end_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, quick=True, name="vit-openai.pt")
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).unlink()
    word_level(("a", "photo"), 16).save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="texts end in token 3, but the network pools"):
        load(str(tmp_path / "vit-openai.pt"))


def test_openai_files_are_recognised_by_their_settings(tmp_path: Path) -> None:
    reference = write(tmp_path, quick=True, name="ViT-B-32.pt")
    settings = {"input_resolution": 32, "context_length": 16, "vocab_size": 9}
    weights = reference.state_dict() | {key: torch.tensor(value) for key, value in settings.items()}
    torch.save(weights, tmp_path / "ViT-B-32.pt")
    same(dual(tmp_path / "ViT-B-32.pt"), reference)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("custom", [False, True])
def test_an_open_clip_folder(quick: bool, custom: bool, tmp_path: Path) -> None:
    reference = write(tmp_path, quick=quick, name="open_clip_pytorch_model.bin")
    if custom:
        weights = {
            key if key.startswith(("visual.", "logit")) else f"text.{key}": tensor
            for key, tensor in reference.state_dict().items()
        }
        torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    checkpoint = dual(configured(tmp_path, CONFIG, quick_gelu=quick))
    same(checkpoint, reference)
    assert checkpoint.preprocess == Preprocess(
        size=(32, 32),
        resize="shorter",
        shorter_side=32,
        interpolation="bicubic",
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )


def test_an_open_clip_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = write(tmp_path / "there", quick=False, name="open_clip_pytorch_model.bin")
    configured(tmp_path / "there", CONFIG)
    here = tmp_path / "here"
    here.mkdir()

    def download(repository: str, allow_patterns: list[str]) -> str:
        assert repository == "laion/some-clip"
        for file in (tmp_path / "there").iterdir():
            if file.name in allow_patterns:
                (here / file.name).write_bytes(file.read_bytes())
        return str(here)

    monkeypatch.setattr(hub, "snapshot_download", download)
    checkpoint = load("laion/some-clip")
    assert isinstance(checkpoint, DualCheckpoint)
    same(checkpoint, reference)


def siglip_weights() -> tuple[DualCheckpoint, dict[str, Tensor]]:
    """Return a SigLIP and its weights with OpenCLIP's names."""
    tower = {"dim": 64, "heads": 1, "activation": "gelu"}
    checkpoint = tiny.dual_checkpoint(
        siglip=True,
        image=tower,
        text={
            "dim": 64,
            "heads": 2,
            "classes": 64,
            "vocabulary": 50,
            "most_text": 16,
            "eps": 1e-6,
            "activation": "gelu",
        },
    )
    weights: dict[str, Tensor] = {}
    plain = {"words.weight": "token_embedding.weight", "positions.weight": "positional_embedding"}
    block = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "attn.qkv": "attn.in_proj",
    }
    for key, tensor in checkpoint.model.state_dict().items():
        side, _, rest = key.partition(".")
        if side == "image":
            weights[f"visual.trunk.{rest.replace('probe', 'latent')}"] = tensor
        elif side == "text":
            if rest in plain:
                rest = plain[rest]
            elif rest.startswith("blocks"):
                _, layer, part = rest.split(".", 2)
                stem, _, kind = part.rpartition(".")
                joint = "_" if stem == "attn.qkv" else "."
                rest = f"transformer.resblocks.{layer}.{block[stem]}{joint}{kind}"
            rest = rest.replace("norm.", "ln_final.").replace("head.", "text_projection.")
            weights[f"text.{rest}"] = tensor
        else:
            weights[key] = tensor
    return checkpoint, weights


def write_siglip(folder: Path, **changes: Any) -> DualCheckpoint:
    checkpoint, weights = siglip_weights()
    write_sentence_pieces(folder, PIECES)
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    configured(folder, SIGLIP, **changes)
    return checkpoint


@torch.no_grad()
def test_open_clip_siglip(tmp_path: Path) -> None:
    original = write_siglip(tmp_path)
    checkpoint = dual(tmp_path)
    config = checkpoint.model.config
    assert config.scores == "sigmoid"
    assert (config.image.pool, config.text.padded, checkpoint.text.padding) == (
        "attention",
        True,
        1,
    )
    assert checkpoint.preprocess == Preprocess(size=(32, 32), interpolation="bicubic")
    assert config.text == original.model.config.text
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        checkpoint.model.embed_images(image), original.model.embed_images(image)
    )
    ids = torch.from_numpy(checkpoint.text.encode("a photo of a cat").ids)[None]
    torch.testing.assert_close(checkpoint.model.embed_texts(ids), original.model.embed_texts(ids))
    tanh = {"act_kwargs": {"approximate": "tanh"}}
    write_siglip(
        tmp_path, text_cfg=tanh, vision_cfg={"timm_model_name": "vit_so400m_patch8_siglip_32"}
    )
    towers = dual(tmp_path).model.config
    assert towers.text.activation == towers.image.activation == "gelu_tanh"
    assert towers.image.heads == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision_cfg": {"timm_model_name": "vit_medium_patch16_gap_256"}},
            "supported is vit_SIZE_patchN_siglip_N",
        ),
        ({"vision_cfg": {"timm_proj": "linear"}}, "supported is vit_SIZE_patchN_siglip_N"),
        ({"text_cfg": {"no_causal_mask": False}}, "must have no_causal_mask"),
        ({"text_cfg": {"pool_type": "mean"}}, r"text_cfg\.pool_type: Input should be"),
        ({"text_cfg": {"embed_cls": True}}, r"text_cfg\.embed_cls = True is not supported"),
        ({"vision_cfg": {"attentional_pool": True}}, r"vision_cfg\.attentional_pool"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, r"text_cfg\.hf_model_name"),
    ],
)
def test_invalid_siglip_folders_are_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_siglip(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(str(tmp_path))


def test_siglip_needs_its_configuration(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"put its open_clip_config\.json beside the weights"):
        load(str(tmp_path / "open_clip_pytorch_model.bin"))


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("visual.conv1.weight", torch.ones(64, 1, 8, 8), "square patches of 3 channels"),
        (
            "visual.positional_embedding",
            torch.ones(16, 64),
            "15 patches, which do not form a square",
        ),
        ("positional_embedding", torch.ones(16), "1 dimensions instead of 2"),
        ("odd", torch.ones(1), "unknown: odd"),
        ("visual.layer1.0.conv1.weight", None, "not ResNets"),
        ("visual.proj", None, r"missing: visual\.proj"),
        ("ln_final.bias", None, r"missing: ln_final\.bias"),
    ],
)
def test_invalid_files_are_rejected(
    key: str, tensor: Tensor | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "laion.pt"
    weights = write(tmp_path, quick=False, name=file.name).state_dict()
    if tensor is not None:
        weights[key] = tensor
    elif key in weights:
        del weights[key]
    else:
        weights[key] = weights.pop("visual.conv1.weight")
    torch.save(weights, file)
    with pytest.raises(CheckpointError, match=message):
        load(str(file))


def test_a_text_tower_other_than_clip_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, quick=False, name="open_clip_pytorch_model.bin")
    configured(tmp_path, CONFIG, text_cfg={"no_causal_mask": True})
    with pytest.raises(CheckpointError, match="its attention is not causal"):
        load(str(tmp_path))
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"no weights \(open_clip_model"):
        load(str(tmp_path))
