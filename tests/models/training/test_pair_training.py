"""Training of the ViLT for scenes: batches, losses and resumable runs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tokenfold import scenes as world
from tokenfold.bundle.schedule import plan_for
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.text import word_level
from tokenfold.export.quality.pair import Items
from tokenfold.models.training import pair
from tokenfold.models.training.pair_data import (
    GRID,
    LABELS,
    TaskCounts,
    batch,
    encode,
    evaluation,
    write_held_out,
)
from tokenfold.models.training.pair_losses import PairProbes, mask, student_loss, teacher_loss
from tokenfold.models.training.pair_network import CONFIG, initialise, sinusoids
from tokenfold.models.training.run import Run, TrainingSettings

SMALL = TaskCounts(vqa=2, entail=1, match=1, reason=2)


def test_batches_are_deterministic() -> None:
    first, again, other = batch(SMALL, 0, 3), batch(SMALL, 0, 3), batch(SMALL, 0, 4)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.answers, again.answers)
    assert not torch.equal(first.pixels, other.pixels)


def test_a_batch_has_one_image_per_text_and_two_for_reason() -> None:
    sample = batch(SMALL, 0, 0)
    assert sample.tasks == ("vqa", "vqa", "entail", "match", "reason", "reason")
    assert len(sample.pixels) == len(sample.ids) == 8
    assert torch.equal(sample.ids[4:6], sample.ids[6:8])  # one text for both of a pair
    assert torch.equal((sample.size > 0), (sample.ids > 0))


def test_places_and_counts_match_the_scene() -> None:
    sample = batch(TaskCounts(vqa=24, entail=0, match=0, reason=0), 0, 1)
    for counts, places, mentioned, centre in zip(
        sample.counts, sample.places, sample.mentioned, sample.centre, strict=True
    ):
        for count, (row, column), patches in zip(counts, places, mentioned, strict=True):
            assert (count == -1) == (patches[0] == -1)
            if count == 1:
                assert centre[row * GRID + column] == 1
                assert patches.max() == 1
            else:
                assert row == column == -1


def test_harder_batches_have_more_hard_texts() -> None:
    mix = TaskCounts(vqa=60, entail=0, match=0, reason=0)
    numbers = [
        int((batch(mix, 0, 0, harder=harder).answers < 8).sum())  # yes, no and the counts
        for harder in (False, True)
    ]
    assert numbers[1] > numbers[0]


def test_training_ids_match_the_tokenizer() -> None:
    text = word_level(world.WORDS, CONFIG.most_text)
    random = np.random.default_rng(0)
    for seed in range(50):
        question = world.question(world.scene(seed), random).text
        assert text.encode(question).ids.tolist() == encode(question)


def test_masking_keeps_every_patch_with_a_thing() -> None:
    sample = batch(SMALL, 0, 0)
    fewer, patches = mask(sample, 120, torch.Generator().manual_seed(0))
    assert fewer.shown.shape == (8, 4, 120)
    assert (fewer.shown[:, 0] > 0).sum() == (sample.shown[:, 0] > 0).sum()
    assert fewer.centre.shape == patches.shape
    assert torch.equal(fewer.centre, sample.centre.gather(1, patches))


def test_losses_reach_every_weight() -> None:
    torch.manual_seed(0)
    model, probes, sample = initialise().train(), PairProbes(), batch(SMALL, 0, 0)
    fewer, patches = mask(sample, 60, torch.Generator().manual_seed(0))
    sum(teacher_loss(model, probes, fewer, patches, text=True)).backward()  # type: ignore[union-attr]
    for name, parameter in (*model.named_parameters(), *probes.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_distillation_loss_is_zero_for_identical_networks() -> None:
    torch.manual_seed(0)
    model, sample = initialise().eval(), batch(SMALL, 0, 0)
    words = sample.ids.shape[1]
    for reduction, near in ((0.0, True), (0.5, False)):
        plan = plan_for(CONFIG.workload("pumer", text=words), reduction)
        _, distance = student_loss(model, model, sample, plan, weighted=True)
        assert (float(distance.detach()) < 1e-6) == near


def test_evaluation_covers_each_task() -> None:
    counts: dict[PairTask, int] = dict.fromkeys(LABELS, 0)
    for sample in evaluation(3):
        for task in sample.tasks:
            counts[task] += 1
    assert set(counts.values()) == {3}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    settings = TrainingSettings(steps=4, rate=1e-2, seed=0)

    def steps(run: Run[nn.Linear], until: int) -> None:
        while run.step < until:
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(run.step))
            run.update((run.model(x) - x.sum(1, keepdim=True)).square().mean())

    def fresh(file: str) -> Run[nn.Linear]:
        torch.manual_seed(1)
        return Run(nn.Linear(3, 1), nn.Identity(), settings, tmp_path / file)

    whole = fresh("whole.pt")
    steps(whole, 4)
    stopped = fresh("stopped.pt")
    steps(stopped, 2)
    stopped.save()
    resumed = fresh("stopped.pt")
    assert resumed.step == 2
    steps(resumed, 4)
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert torch.equal(resumed.averaged.weight, whole.averaged.weight)


def test_a_run_with_other_settings_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    Run(nn.Linear(1, 1), nn.Identity(), TrainingSettings(steps=4, rate=0.1, seed=0), file).save()
    with pytest.raises(ValueError, match="contains a run with"):
        Run(nn.Linear(1, 1), nn.Identity(), TrainingSettings(steps=5, rate=0.1, seed=0), file)


def test_held_out_scenes_can_be_measured_on(tmp_path: Path) -> None:
    file = tmp_path / "held-out.zip"
    write_held_out(file, {"vqa": 2, "reason": 1, "match": 2})
    labels: dict[PairTask, tuple[str, ...]] = {**LABELS, "match": ("no match", "match")}
    items = Items(file, labels)
    assert [item.task for item in items.items] == ["vqa", "vqa", "reason", "match", "match"]
    assert all(item.answer is not None and item.answer >= 0 for item in items.items)
    with zipfile.ZipFile(file) as archive:
        lines = archive.read("items.jsonl").decode().splitlines()
    assert json.loads(lines[2])["images"] == ["reason/0-left.png", "reason/0-right.png"]


def test_every_phase_has_a_command() -> None:
    assert set(pair.PHASES) == {"teacher", "compare", "student", "checkpoint"}


def test_sinusoids_distinguish_all_positions() -> None:
    places = sinusoids((GRID, GRID), CONFIG.dim)
    assert places.shape == (GRID * GRID, CONFIG.dim)
    apart = torch.cdist(places, places) + 10 * torch.eye(len(places))
    assert apart.min() > 0.5
