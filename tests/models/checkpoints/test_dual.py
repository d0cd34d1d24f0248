"""CLIP and SigLIP from Hugging Face folders: parity with `transformers`, and rejected folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tests import tiny
from tests.models.published_dual import write_clip, write_siglip
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.models.checkpoints import native, random_dual
from tokenfold.models.checkpoints.checkpoint import CheckpointError, DualCheckpoint
from tokenfold.models.checkpoints.load import load, load_classifier

TEXTS = ("a photo of a cat", "this is a photo of two dogs", "a", "it is red, isn't it? " * 8)


def dual(source: Path | str) -> DualCheckpoint:
    checkpoint = load(str(source))
    assert isinstance(checkpoint, DualCheckpoint)
    assert not checkpoint.model.training
    return checkpoint


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def images(checkpoint: DualCheckpoint, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 3, *checkpoint.model.config.image.image_size, generator=generator)


def padded(checkpoint: DualCheckpoint, fill: int) -> tuple[Tensor, Tensor]:
    """Pad texts to the longest one; return ids and sizes."""
    ids = [checkpoint.text.encode(text).ids for text in TEXTS]
    longest = max(map(len, ids))
    rows = [np.pad(row, (0, longest - len(row)), constant_values=fill) for row in ids]
    lengths = torch.tensor([len(row) for row in ids])
    size = (torch.arange(longest) < lengths[:, None]).float()
    return torch.from_numpy(np.stack(rows)), size


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file, and of its objects `vision_config` and `text_config`."""
    content = json.loads(file.read_text())
    for key, value in changes.items():
        content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("write", [write_clip, write_siglip])
@torch.no_grad()
def test_vectors_and_logits_match_transformers(write: Any, tmp_path: Path) -> None:
    reference = write(tmp_path)
    checkpoint = dual(tmp_path)
    image = images(checkpoint)
    ids, size = padded(checkpoint, checkpoint.text.padding or 0)
    expected = reference(pixel_values=image, input_ids=ids)
    vectors, texts = checkpoint.model.embed_images(image), checkpoint.model.embed_texts(ids, size)
    assert_close(vectors, expected.image_embeds)
    assert_close(texts, expected.text_embeds)
    logits = checkpoint.model.logits(vectors, texts)
    assert_close(logits, expected.logits_per_image)
    assert logits.std() > 0.1
    features = reference.get_image_features(pixel_values=image)
    features = getattr(features, "pooler_output", features)
    assert_close(checkpoint.model.image(image).logits, features)
    features = reference.get_text_features(input_ids=ids)
    features = getattr(features, "pooler_output", features)
    assert_close(checkpoint.model.text(ids, size), features)


@pytest.mark.parametrize("fill", [0, 7])
@torch.no_grad()
def test_padding_does_not_change_clip_texts(fill: int, tmp_path: Path) -> None:
    reference = write_clip(tmp_path)
    checkpoint = dual(tmp_path)
    ids, size = padded(checkpoint, fill)
    together = checkpoint.model.embed_texts(ids, size)
    expected = reference.get_text_features(input_ids=ids)
    expected = F.normalize(getattr(expected, "pooler_output", expected), dim=-1)
    for row, text in enumerate(TEXTS):
        alone = checkpoint.model.embed_texts(
            torch.from_numpy(checkpoint.text.encode(text).ids)[None]
        )[0]
        torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-5)
        assert_close(alone, expected[row])
    assert {len(checkpoint.text.encode(text).ids) for text in TEXTS} > {16}


def test_siglip_texts_are_padded(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    checkpoint = dual(tmp_path)
    encoded = checkpoint.text.encode("A photo, of a CAT!")
    assert encoded.ids.tolist() == [3, 4, 5, 3, 8, 1] + [1] * 10
    assert len(encoded.tokens) == 6
    assert not encoded.cut


@torch.no_grad()
def test_old_files_pool_the_highest_id(tmp_path: Path) -> None:
    reference = write_clip(tmp_path, text_config={"eos_token_id": 2})
    checkpoint = dual(tmp_path)
    ids, size = padded(checkpoint, 0)
    expected = reference.get_text_features(input_ids=ids)
    expected = getattr(expected, "pooler_output", expected)
    assert_close(checkpoint.model.text(ids, size), expected)
    edit(tmp_path / "config.json", text_config={"eos_token_id": 9})
    with pytest.raises(CheckpointError, match="the network pools token 9"):
        load(str(tmp_path))


def test_folder_configuration_is_read(tmp_path: Path) -> None:
    write_clip(tmp_path)
    checkpoint = dual(tmp_path)
    config = checkpoint.model.config
    assert (config.scores, checkpoint.template) == ("softmax", "a photo of a {}.")
    assert (config.width, config.text.most_text, checkpoint.text.most_tokens) == (40, 16, 16)
    assert checkpoint.preprocess.resize == "shorter"  # the default, because there is no file
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 40},
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.1, 0.2, 0.3],
    }
    expected = Preprocess(
        size=(32, 32),
        resize="shorter",
        shorter_side=40,
        interpolation="bicubic",
        mean=(0.1, 0.2, 0.3),
    )
    # Newer versions write the first file and older ones the second, which takes precedence.
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    assert dual(tmp_path).preprocess == expected
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"resample": 2}))
    assert dual(tmp_path).preprocess.interpolation == "bilinear"
    with pytest.raises(CheckpointError, match="is not an image classifier"):
        load_classifier(str(tmp_path))


def test_siglip_scores_and_template(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    checkpoint = dual(tmp_path)
    assert (checkpoint.model.config.scores, checkpoint.template) == (
        "sigmoid",
        "This is a photo of {}.",
    )
    assert checkpoint.preprocess == Preprocess(size=(32, 32), interpolation="bicubic")
    assert checkpoint.model.config.image.activation == "gelu_tanh"


@torch.no_grad()
def test_edges_that_patches_do_not_tile_are_ignored(tmp_path: Path) -> None:
    reference = write_siglip(tmp_path, vision_config={"image_size": 37})
    checkpoint = dual(tmp_path)
    assert checkpoint.model.config.image.grid == (4, 4)
    image = images(checkpoint)
    assert image.shape[-1] == 37
    ids, _ = padded(checkpoint, 1)
    expected = reference(pixel_values=image, input_ids=ids)
    assert_close(checkpoint.model.embed_images(image), expected.image_embeds)


@pytest.mark.parametrize("write", [write_clip, write_siglip])
@torch.no_grad()
def test_positions_are_resized_to_larger_images(write: Any, tmp_path: Path) -> None:
    reference = write(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 48, "width": 48}, "resample": 3})
    )
    checkpoint = dual(tmp_path)
    assert checkpoint.model.config.image.grid == (6, 6)
    image = images(checkpoint)
    expected = reference.get_image_features(pixel_values=image, interpolate_pos_encoding=True)
    expected = getattr(expected, "pooler_output", expected)
    assert_close(checkpoint.model.image(image).logits, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["CLIPVisionModel"]},
            "architecture is CLIPVisionModel; supported dual encoders are",
        ),
        ({"model_type": "siglip2"}, "NaFlex"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"vision_config": 3}, "vision_config is not an object"),
        ({"vision_config": {"hidden_size": "x"}}, r"vision_config\.hidden_size: Input should be"),
        ({"vision_config": {"hidden_act": "sin"}}, r"vision_config\.hidden_act is 'sin'"),
        ({"text_config": {"hidden_act": "sin"}}, r"text_config\.hidden_act is 'sin'"),
        ({"vision_config": {"num_channels": 1}}, "num_channels is 1"),
        ({"vision_config": {"patch_size": [8, 4]}}, "supported are square patches"),
        ({"vision_config": {"num_attention_heads": 5}}, "does not divide into 5 heads"),
        ({"vision_config": {"num_hidden_layers": 4}}, r"missing: vision_model\.encoder\.layers\.3"),
        ({"text_config": {"num_hidden_layers": 1}}, r"unknown: text_model\.encoder\.layers\.1"),
        ({"text_config": {"vocab_size": 7}}, "wrong shape"),
    ],
)
def test_invalid_folders_are_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_clip(tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(str(tmp_path))


def test_invalid_siglip_folders_are_rejected(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    edit(tmp_path / "config.json", vision_config={"vision_use_head": False})
    with pytest.raises(CheckpointError, match="vision_use_head is false"):
        load(str(tmp_path))
    edit(tmp_path / "config.json", vision_config={"vision_use_head": True})
    weights = load_file(tmp_path / "model.safetensors")
    del weights["text_model.head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: text_model\.head\.weight"):
        load(str(tmp_path))


def test_a_tokenizer_with_too_many_words_is_rejected(tmp_path: Path) -> None:
    write_siglip(tmp_path, text_config={"vocab_size": 20})
    with pytest.raises(CheckpointError, match="words, the network 20"):
        load(str(tmp_path))


# Tokenfold's own format, and random weights.


@pytest.mark.parametrize("siglip", [False, True])
@torch.no_grad()
def test_native_folder_round_trip(siglip: bool, tmp_path: Path) -> None:
    checkpoint = tiny.dual_checkpoint(siglip=siglip)
    native.save(tmp_path, checkpoint)
    reloaded = dual(tmp_path)
    assert reloaded.model.config == checkpoint.model.config
    assert (reloaded.preprocess, reloaded.template) == (checkpoint.preprocess, checkpoint.template)
    assert reloaded.text.padding == (0 if siglip else None)
    text = "what is it, a cat or two?"
    assert reloaded.text.encode(text).ids.tolist() == checkpoint.text.encode(text).ids.tolist()
    image = images(checkpoint)
    torch.testing.assert_close(
        reloaded.model.embed_images(image), checkpoint.model.embed_images(image)
    )
    ids = torch.from_numpy(checkpoint.text.encode(text).ids)[None]
    torch.testing.assert_close(reloaded.model.embed_texts(ids), checkpoint.model.embed_texts(ids))


def test_invalid_native_folders_are_rejected(tmp_path: Path) -> None:
    native.save(tmp_path, tiny.dual_checkpoint(siglip=True))
    edit(tmp_path / "tokenfold.json", padding=None)
    with pytest.raises(CheckpointError, match="a padded tower needs a padding id"):
        load(str(tmp_path))
    edit(tmp_path / "tokenfold.json", padding=999)
    with pytest.raises(CheckpointError, match="padding token 999 is not in"):
        load(str(tmp_path))
    for template in (5, "it is", "{} or {}"):
        edit(tmp_path / "tokenfold.json", padding=0, template=template)
        with pytest.raises(CheckpointError, match="template"):
            load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "width", "length"), [("clip-vit-ti16-64", 192, 5), ("siglip-ti16-64", 192, 64)]
)
@torch.no_grad()
def test_random_networks(name: str, width: int, length: int) -> None:
    checkpoint, reloaded = dual(f"random:{name}"), dual(f"random:{name}")
    image = images(checkpoint)
    vectors = checkpoint.model.embed_images(image)
    torch.testing.assert_close(vectors, reloaded.model.embed_images(image))
    assert vectors.shape == (3, width)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    texts = [
        checkpoint.text.encode(text).ids for text in ("word1 word2 word3", "word4 word5 word6")
    ]
    assert [len(ids) for ids in texts] == [length, length]
    text_vectors = checkpoint.model.embed_texts(torch.from_numpy(np.stack(texts)))
    assert text_vectors[0] @ text_vectors[1] < 0.9999
    assert vectors[0] @ vectors[1] < 0.99


def test_unknown_random_networks_are_rejected() -> None:
    assert not random_dual.recognises("clip-b16")  # an image classifier
    with pytest.raises(CheckpointError, match=r"clip-vit-b16, .*siglip-b16"):
        load("random:siglip-x16")
    with pytest.raises(CheckpointError, match="patches of 16 do not tile"):
        load("random:siglip-ti16-65")
    with pytest.raises(CheckpointError, match="at most 2048 pixels"):
        load("random:clip-vit-ti16-4096")
