"""METER's published files: form, sizes, reduction, and rejected files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.models.published_meter import PADDING, PATCH, SIDE, VOCABULARY, PublishedMeter
from tokenfold.bundle.text import word_level
from tokenfold.models.checkpoints import native
from tokenfold.models.checkpoints.checkpoint import CheckpointError, PairCheckpoint
from tokenfold.models.checkpoints.load import load
from tokenfold.models.checkpoints.meter import default_reduction, published_rates
from tokenfold.models.networks.meter import Meter

PUMER: dict[str, Any] = {
    "model_type": "meter",
    "max_text_len": 12,
    "tokenizer": "roberta-base",
    "image_size": SIDE,
    "merge_style": "tip",  # PuMer's default, which its METER ignores
}


def tokenizer(folder: Path, max_tokens: int) -> None:
    word_level([f"w{index}" for index in range(VOCABULARY - 4)], max_tokens).save(
        folder / "tokenizer.json"
    )


def official(folder: Path, weights: dict[str, Tensor], name: str = "meter_vqa.ckpt") -> Path:
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": weights, "epoch": 3}, folder / name)
    tokenizer(folder, 50)
    return folder / name


def pumers(folder: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**PUMER, **changes}))
    tokenizer(folder, 12)
    return folder


def loaded(source: Path) -> tuple[Meter, PairCheckpoint]:
    checkpoint = load(str(source))
    assert isinstance(checkpoint, PairCheckpoint)
    assert isinstance(checkpoint.model, Meter)
    return checkpoint.model, checkpoint


def inputs(side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """Return two pairs of images, with texts of five and nine tokens."""
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(2, 2, 3, side, side, generator=generator)
    ids = torch.randint(4, VOCABULARY, (2, 9), generator=generator)
    ids[0, 5:] = PADDING
    return image, ids, (ids != PADDING).float()


@pytest.mark.parametrize("side", [SIDE, SIDE + 2 * PATCH, SIDE - PATCH])
@torch.no_grad()
def test_an_official_file_is_the_parallel_form(tmp_path: Path, side: int) -> None:
    reference = PublishedMeter(images=2)
    model, checkpoint = loaded(official(tmp_path, reference.official()))
    config = model.config
    assert (config.form, config.protect_class, checkpoint.weighted) == ("parallel", True, True)
    assert (config.image_size, config.most_text, config.modalities) == ((SIDE, SIDE), 50, 3)
    assert (config.vision_depth, config.text_depth, config.depth) == (3, 2, 3)
    assert config.vision_merged == 0
    assert config.heads["vqa"].scores == "sigmoid"
    assert config.heads["entail"].scores == "softmax"
    assert checkpoint.labels["entail"] == ("contradiction", "neutral", "entailment")
    assert checkpoint.labels["reason"] == ("false", "true")
    assert checkpoint.preprocess.resize == "shorter"
    image, ids, size = inputs(side)
    first = reference.pooled(image[:, 0], ids, "parallel")
    expected = reference.heads["vqa"](first)
    assert expected.std(0).mean() > 0.05  # the inputs affect the answers
    answer = model(image[:, 0], ids, size, task="vqa")
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=0)
    both = torch.cat([first, reference.pooled(image[:, 1], ids, "parallel", True)], dim=-1)
    torch.testing.assert_close(
        model(image, ids, size, task="reason"), reference.heads["nlvr2"](both), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_a_pumer_folder_is_the_sequential_form(tmp_path: Path) -> None:
    reference = PublishedMeter()
    source = pumers(tmp_path / "meter-ve-ft", reference.pumers())
    model, checkpoint = loaded(source)
    assert model.config.form == "sequential"
    assert model.config.most_text == 12
    # Networks trained without reduction need their class token.
    assert model.config.protect_class
    assert checkpoint.weighted
    assert checkpoint.preprocess.resize == "stretch"
    image, ids, size = inputs()
    expected = reference.heads["snli"](reference.pooled(image[:, 0], ids, "sequential"))
    answer = model(image[:, 0], ids, size, task="entail")
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=0)
    parallel = reference.heads["snli"](reference.pooled(image[:, 0], ids, "parallel"))
    assert (answer - parallel).abs().max() > 0.01


def test_pumer_numbers_two_layers_per_pair(tmp_path: Path) -> None:
    reduces = {"prune_r": 0.3, "merge_r": 0.5, "merge_text": 0.2, "reduce_layers": [0, 2, 3, 4]}
    model, checkpoint = loaded(pumers(tmp_path, PublishedMeter().pumers(), **reduces))
    assert model.config.layers == (0, 1, 2)
    assert model.config.rates == (0.3, 0.5, 0.2)
    assert not model.config.protect_class
    assert not checkpoint.weighted


def test_a_folder_name_may_tell_the_reduction(tmp_path: Path) -> None:
    source = pumers(tmp_path / "meter-vqa2-p0.2-r0.2-t0.1-024", PublishedMeter().pumers())
    model, _ = loaded(source)
    assert (model.config.layers, model.config.rates) == ((0, 1, 2), (0.2, 0.2, 0.1))


def test_rates_match_the_published_code() -> None:
    assert published_rates(0.2, 0.3, 0.1) == (0.2, 0.3, 0.1)
    assert published_rates(0.0, 0.3, 0.1) == (0.0, 0.0, 0.0)
    assert published_rates(0.2, 0.0, 0.1) == (0.0, 0.0, 0.1)


def test_default_reductions_are_the_published_ones() -> None:
    assert default_reduction("vqa", 6) == ((0, 1, 2, 3), (0.2, 0.2, 0.2))
    assert default_reduction("entail", 6) == ((0, 1, 2, 3), (0.3, 0.5, 0.2))
    assert default_reduction("reason", 6) == ((1, 2, 3), (0.3, 0.5, 0.2))


def test_an_ambiguous_form_is_rejected(tmp_path: Path) -> None:
    weights = PublishedMeter().official()
    mixed = {key.replace("vit_model.visual.", "vit_model."): w for key, w in weights.items()}
    source = official(tmp_path, mixed)
    with pytest.raises(CheckpointError, match='"form": "parallel" or "form": "sequential"'):
        load(str(source))
    # Official names with PuMer's configuration.
    with pytest.raises(CheckpointError, match="neither those of the official code"):
        load(str(pumers(tmp_path / "folder", weights)))
    for form in ("parallel", "sequential"):
        model, _ = loaded(pumers(tmp_path / "folder", weights, form=form))
        assert model.config.form == form
    (tmp_path / "config.json").write_text('{"form": "sequential"}')
    model, _ = loaded(official(tmp_path, weights))
    assert model.config.form == "sequential"
    (tmp_path / "config.json").write_text('{"form": "both"}')
    with pytest.raises(CheckpointError, match="form is 'both'; allowed are parallel, sequential"):
        load(str(source))


def test_retrieval_ranks_with_one_head(tmp_path: Path) -> None:
    weights = {k: w for k, w in PublishedMeter().official().items() if "classifier" not in k}
    weights |= {"rank_output.weight": torch.randn(1, 256), "rank_output.bias": torch.zeros(1)}
    weights |= {"itm_score.fc.weight": torch.randn(2, 256), "itm_score.fc.bias": torch.zeros(2)}
    model, checkpoint = loaded(official(tmp_path, weights))
    assert list(model.config.heads) == ["match"]
    assert model.config.heads["match"].classes == 1
    assert model.config.most_text == 40
    assert checkpoint.labels == {"match": ()}
    del weights["rank_output.weight"], weights["rank_output.bias"]
    model, checkpoint = loaded(official(tmp_path, weights))
    assert checkpoint.labels == {"match": ("no match", "match")}


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("classifier", "no head of a task"),
        ("vit_model.visual.conv1", "missing: vit_model.visual.conv1.weight; supported is"),
        ("text_transformer.encoder.layer.1.output.dense.bias", "missing: text_transformer"),
        ("cross_modal_image_layers.1", "missing: cross_modal_image_layers.1"),
    ],
)
def test_missing_weights_are_named(tmp_path: Path, missing: str, message: str) -> None:
    weights = {k: w for k, w in PublishedMeter().official().items() if missing not in k}
    with pytest.raises(CheckpointError, match=message):
        load(str(official(tmp_path, weights)))


def test_too_few_positions_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="texts of 59 tokens need 61 positions; there are 60"):
        load(str(pumers(tmp_path, PublishedMeter().pumers(), max_text_len=59)))


def test_another_text_tower_is_rejected(tmp_path: Path) -> None:
    source = pumers(tmp_path, PublishedMeter().pumers(), tokenizer="bert-base-uncased")
    with pytest.raises(CheckpointError, match="tokenizer is bert-base-uncased; supported is"):
        load(str(source))


@torch.no_grad()
def test_native_format_round_trip(tmp_path: Path) -> None:
    model, checkpoint = loaded(official(tmp_path, PublishedMeter(images=2).official()))
    native.save(tmp_path / "native", checkpoint)
    reloaded_model, reloaded = loaded(tmp_path / "native")
    assert reloaded_model.config == model.config
    assert (reloaded.preprocess, reloaded.labels, reloaded.weighted) == checkpoint[
        1:3
    ] + checkpoint[4:]
    image, ids, size = inputs()
    assert torch.equal(
        reloaded_model(image, ids, size, task="reason"), model(image, ids, size, task="reason")
    )


@torch.no_grad()
def test_random_weights_are_deterministic() -> None:
    model, checkpoint = loaded(Path("random:meter-ti16-32"))
    assert model.config.image_size == (32, 32)
    assert model.config.form == "sequential"
    assert checkpoint.text.vocabulary == model.config.vocabulary
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[2, 9, 8, 3], [2, 7, 6, 3]])
    logits = model(image, ids, task="vqa")
    assert logits.shape == (2, 3129)
    assert logits.std(0).mean() > 0.05  # different inputs give different answers
    assert torch.equal(logits, loaded(Path("random:meter-ti16-32"))[0](image, ids, task="vqa"))
    with pytest.raises(CheckpointError, match="patches of 16 do not tile"):
        load("random:meter-ti16-40")
    with pytest.raises(CheckpointError, match="at most 2048 pixels"):
        load("random:meter-b16-4096")
