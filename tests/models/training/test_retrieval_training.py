"""Training of the dual encoder for scenes: batches, losses and recall."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenfold import scenes
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint
from tokenfold.models.checkpoints.load import load
from tokenfold.models.networks.vilt import Vilt
from tokenfold.models.training import retrieval
from tokenfold.models.training.pair_network import CONFIG as VILT_CONFIG
from tokenfold.models.training.retrieval import CONFIG, VECTOR, WIDTH, initialise, recall
from tokenfold.models.training.retrieval_data import FACTS, batch, encode, held_out, write_held_out
from tokenfold.models.training.retrieval_losses import RetrievalProbes, losses
from tokenfold.models.training.run import TrainingSettings

SETTINGS = TrainingSettings(steps=4, rate=1e-3, seed=0, patches=72, masked=2, reductions=(0.3, 0.5))


def test_the_network_is_small_and_sees_enough_tokens() -> None:
    model = initialise()
    assert sum(parameter.numel() for parameter in model.parameters()) < 6_000_000
    assert CONFIG.image.workload("tome").tokens >= 144


def test_batches_are_deterministic() -> None:
    first, again, other = batch(3, 0, 5), batch(3, 0, 5), batch(3, 0, 6)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.pixels, other.pixels)


def test_facts_join_two_attributes_of_one_thing() -> None:
    sample = batch(8, 0, 0)
    assert sample.facts.shape == (8, FACTS)
    # Ten pairs of five attributes, and no more of each than there are things.
    things = [len(scene.things) for scene in _drawn(8)]
    assert all(
        10 <= row.sum() <= 10 * count for row, count in zip(sample.facts, things, strict=True)
    )


def _drawn(count: int) -> list[scenes.Scene]:
    random = np.random.default_rng((0, 0, 2))
    seeds = random.integers(scenes.HELD_OUT.start, size=count)
    return [scenes.scene(int(seed)) for seed in seeds]


def test_training_scenes_exclude_held_out_ones() -> None:
    gallery = held_out(5, first=3)
    assert [scene.seed for scene in gallery.scenes] == [10_000_003 + index for index in range(5)]
    assert len(set(gallery.texts)) == 5


def test_losses_reach_both_towers_masked_whole_and_reduced() -> None:
    torch.manual_seed(0)
    model, probes, sample = initialise(), RetrievalProbes(WIDTH, VECTOR), batch(4, 0, 0)
    for step in range(4):
        result = losses(model, probes, sample, step, SETTINGS)
        model.zero_grad()
        (result.contrast + result.dense).backward()
        for name in ("image.patch_embed.layers.0.weight", "text.words.weight", "logit_scale"):
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            assert gradient.abs().sum() > 0, name
        assert 0 <= result.recall <= 1


def test_the_image_tower_starts_from_the_vilt() -> None:
    torch.manual_seed(0)
    vilt = Vilt(VILT_CONFIG)
    model = initialise(vilt)
    weight = "blocks.2.mlp.fc1.weight"
    assert torch.equal(model.image.get_parameter(weight), vilt.get_parameter(weight))
    expected = vilt.pos_embed[:, 1:] + vilt.modality.weight[1]
    assert torch.equal(model.image.pos_embed, expected)


def test_an_untrained_network_has_low_recall() -> None:
    assert recall(initialise().eval(), held_out(40), 0.4) < 0.3


def test_padding_does_not_change_a_text() -> None:
    model = initialise().eval()
    texts = held_out(3).texts
    together = model.embed_texts(*encode(texts))
    for row, text in zip(together, texts, strict=True):
        alone = model.embed_texts(encode([text])[0])[0]
        assert torch.allclose(row, alone, atol=1e-5)


def test_the_held_out_file_describes_each_image(tmp_path: Path) -> None:
    write_held_out(tmp_path / "held-out.zip", held_out(3))
    with zipfile.ZipFile(tmp_path / "held-out.zip") as archive:
        items = [json.loads(line) for line in archive.read("items.jsonl").splitlines()]
        assert [item["images"] for item in items] == [[f"{index:05}.png"] for index in range(3)]
        assert {item["task"] for item in items} == {"retrieve"}
        assert len(archive.namelist()) == 4


def test_a_run_is_written_as_a_checkpoint_for_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrieval, "MEASURED", 2)
    line = ["retrieval", "checkpoint", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", line)
    retrieval.main()
    loaded = load(str(tmp_path / "out" / "retrieval-checkpoint"))
    assert isinstance(loaded, DualCheckpoint)
    assert loaded.model.config == CONFIG
    text = held_out(1).texts[0]
    ids = encode([text])[0][0]
    assert loaded.text.encode(text).ids.tolist() == ids.tolist()
    assert "{}" in loaded.template
    with zipfile.ZipFile(tmp_path / "out" / "retrieval-held-out.zip") as archive:
        assert len(archive.namelist()) == 3
    monkeypatch.setattr("sys.argv", ["retrieval", "dance"])
    with pytest.raises(SystemExit):
        retrieval.main()
    assert "train" in capsys.readouterr().err
