"""Training the dual encoder of the world of scenes: batches, losses, recall."""

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
from tokenfold.models.training import scenes_retrieval
from tokenfold.models.training.retrieval_data import FACTS, batch, encoded, held_out, write_held_out
from tokenfold.models.training.retrieval_losses import Probes, losses
from tokenfold.models.training.run import Settings
from tokenfold.models.training.scenes_network import CONFIG as VILT_CONFIG
from tokenfold.models.training.scenes_retrieval import CONFIG, VECTOR, WIDTH, initialised, recall
from tokenfold.models.vilt import Vilt

SETTINGS = Settings(steps=4, rate=1e-3, seed=0, patches=72, masked=2, reductions=(0.3, 0.5))


def test_the_network_is_small_and_sees_enough_tokens() -> None:
    model = initialised()
    assert sum(parameter.numel() for parameter in model.parameters()) < 6_000_000
    assert CONFIG.image.workload("tome").tokens >= 144


def test_a_batch_is_the_same_whenever_it_is_made() -> None:
    first, again, other = batch(3, 0, 5), batch(3, 0, 5), batch(3, 0, 6)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.pixels, other.pixels)


def test_facts_are_of_two_attributes_of_one_thing() -> None:
    made = batch(8, 0, 0)
    assert made.facts.shape == (8, FACTS)
    # Ten pairs of five attributes, and no more of each than there are things.
    things = [len(scene.things) for scene in _drawn(8)]
    assert all(10 <= row.sum() <= 10 * count for row, count in zip(made.facts, things, strict=True))


def _drawn(count: int) -> list[scenes.Scene]:
    random = np.random.default_rng((0, 0, 2))
    seeds = random.integers(scenes.HELD_OUT.start, size=count)
    return [scenes.scene(int(seed)) for seed in seeds]


def test_training_scenes_are_never_those_held_out() -> None:
    gallery = held_out(5, first=3)
    assert [scene.seed for scene in gallery.drawn] == [10_000_003 + at for at in range(5)]
    assert len(set(gallery.texts)) == 5


def test_losses_reach_both_towers_masked_whole_and_reduced() -> None:
    torch.manual_seed(0)
    model, probes, made = initialised(), Probes(WIDTH, VECTOR), batch(4, 0, 0)
    for step in range(4):
        found = losses(model, probes, made, step, SETTINGS)
        model.zero_grad()
        (found.contrast + found.dense).backward()
        for name in ("image.patch_embed.layers.0.weight", "text.words.weight", "logit_scale"):
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            assert gradient.abs().sum() > 0, name
        assert 0 <= found.found <= 1


def test_the_image_side_begins_as_the_vilt_s() -> None:
    torch.manual_seed(0)
    vilt = Vilt(VILT_CONFIG)
    model = initialised(vilt)
    weight = "blocks.2.mlp.fc1.weight"
    assert torch.equal(model.image.get_parameter(weight), vilt.get_parameter(weight))
    wanted = vilt.pos_embed[:, 1:] + vilt.modality.weight[1]
    assert torch.equal(model.image.pos_embed, wanted)


def test_a_network_that_knows_nothing_finds_nothing() -> None:
    assert recall(initialised().eval(), held_out(40), 0.4) < 0.3


def test_padding_does_not_change_a_text() -> None:
    model = initialised().eval()
    texts = held_out(3).texts
    together = model.embed_texts(*encoded(texts))
    for row, text in zip(together, texts, strict=True):
        alone = model.embed_texts(encoded([text])[0])[0]
        assert torch.allclose(row, alone, atol=1e-5)


def test_the_held_out_file_says_what_each_image_is(tmp_path: Path) -> None:
    write_held_out(tmp_path / "held-out.zip", held_out(3))
    with zipfile.ZipFile(tmp_path / "held-out.zip") as archive:
        items = [json.loads(line) for line in archive.read("items.jsonl").splitlines()]
        assert [item["images"] for item in items] == [[f"{at:05}.png"] for at in range(3)]
        assert {item["task"] for item in items} == {"retrieve"}
        assert len(archive.namelist()) == 4


def test_a_run_becomes_what_export_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scenes_retrieval, "MEASURED", 2)
    line = ["scenes_retrieval", "checkpoint", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", line)
    scenes_retrieval.main()
    loaded = load(str(tmp_path / "out" / "retrieval-checkpoint"))
    assert isinstance(loaded, DualCheckpoint)
    assert loaded.model.config == CONFIG
    text = held_out(1).texts[0]
    ids = encoded([text])[0][0]
    assert loaded.text.encode(text).ids.tolist() == ids.tolist()
    assert "{}" in loaded.template
    with zipfile.ZipFile(tmp_path / "out" / "retrieval-held-out.zip") as archive:
        assert len(archive.namelist()) == 3
    monkeypatch.setattr("sys.argv", ["scenes_retrieval", "dance"])
    with pytest.raises(SystemExit):
        scenes_retrieval.main()
    assert "train" in capsys.readouterr().err
