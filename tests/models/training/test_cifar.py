"""Training of the demo classifier, on a small synthetic archive."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenfold.models.checkpoints import native
from tokenfold.models.checkpoints.checkpoint import Checkpoint
from tokenfold.models.training import cifar


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cifar.zip"
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as files:
        for index, label in enumerate(cifar.CLASSES):
            for number in range(20):
                pixels = draw.integers(0, 80, (32, 32, 3)) + 17 * index
                file = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
                files.writestr(f"train/{label}/{number:04}.jpg", file.getvalue())
        files.writestr("train/readme.txt", "no image")
    return path


def test_every_tenth_image_of_a_class_is_held_out(archive: Path, tmp_path: Path) -> None:
    train, held_out = cifar.load(archive)
    assert train.pixels.shape == (180, 32, 32, 3)
    assert held_out.labels.bincount().tolist() == [2] * 10
    cifar.save_held_out(archive, tmp_path / "held-out.zip")
    with zipfile.ZipFile(tmp_path / "held-out.zip") as files:
        assert len(files.namelist()) == 20
        assert "frog/0010.jpg" in files.namelist()


def test_augmentation_shifts_and_flips_whole_images() -> None:
    x = torch.arange(32.0).repeat(64, 3, 32, 1)
    moved = cifar.augment(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    rows = moved[:, 0, 0]
    assert ((rows - x[:, 0, 0]).abs().sum(1) > 0).any()
    steps = rows.diff(dim=1)
    assert set(steps[:, 5:-5].unique().tolist()) == {-1.0, 1.0}, "flipped or not, never stretched"


def test_a_resumed_run_equals_an_uninterrupted_one(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    save = native.save

    def broken(folder: Path, checkpoint: Checkpoint) -> None:
        if (out / "training.pt").exists():
            raise KeyboardInterrupt
        save(folder, checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr(cifar, "save", broken)
        with pytest.raises(KeyboardInterrupt):
            cifar.train(archive, out, epochs=2, batch=60, rate=1e-3, seed=0)
    with pytest.raises(ValueError, match="contains a run"):
        cifar.train(archive, out, epochs=3, batch=60, rate=1e-3, seed=0)
    cifar.train(archive, out, epochs=2, batch=60, rate=1e-3, seed=0)
    summary = json.loads((out / "training.json").read_text())
    assert (summary["epoch"], summary["seed"]) == (2, 0)
    assert set(summary["held_out"]) == {"exact", "high", "balanced", "fast", "fastest"}
    checkpoint = native.load(out)
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.labels == cifar.CLASSES
    assert checkpoint.preprocess == cifar.PREPROCESS
    once = tmp_path / "once"
    cifar.train(archive, once, epochs=2, batch=60, rate=1e-3, seed=0)
    weights = native.load(once).model.state_dict()
    for name, resumed in checkpoint.model.state_dict().items():
        torch.testing.assert_close(resumed, weights[name], msg=f"{name} depends on the break")
