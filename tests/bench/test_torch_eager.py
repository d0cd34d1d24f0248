"""`tokenfold bench --torch`: the same plans in PyTorch, with the exported weights."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.bench.trivial import QUICK
from tokenfold.bench import command, torch_eager
from tokenfold.bench.subjects import ImageGraphs, random_batches
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Precision
from tokenfold.bundle.writing import write_manifest
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.models.checkpoints import native
from tokenfold.models.checkpoints.checkpoint import Checkpoint

MakeFrom = Callable[..., Path]
LEVELS = {"exact": 0.0, "most": 0.4}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoint `weights` and the bundle `tiny`, exported from it."""
    folder = tmp_path_factory.mktemp("exported")
    native.save(folder / "weights", tiny.checkpoint())
    recipe = Recipe(name="tiny", levels=LEVELS)
    export_bundle(tiny.checkpoint(), "weights", folder / "tiny", recipe)
    return folder


@pytest.fixture
def here(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the exported folder the current one."""
    monkeypatch.chdir(exported)
    return exported


@pytest.fixture
def make_from(exported: Path, tmp_path: Path) -> MakeFrom:
    """Return a function that copies the bundle and gives it another checkpoint as its source."""

    def write(checkpoint: Checkpoint, precision: Precision = "fp32") -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        native.save(folder / "weights", checkpoint)
        shutil.copytree(exported / "tiny", folder / "tiny")
        changes = {"source": str(folder / "weights"), "precision": precision}
        manifest = Bundle.open(folder / "tiny").manifest
        write_manifest(folder / "tiny", manifest.model_copy(update=changes))
        return folder / "tiny"

    return write


def run(bundle: Path, *arguments: str) -> int:
    return command.main([str(bundle), "--torch", "--json", *QUICK, *arguments])


def test_torch_runs_the_same_plans(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(here / "tiny", "--threads", "2") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    rows = report["torch"]
    assert [row["level"] for row in rows] == list(LEVELS)
    for row, levels_row in zip(rows, report["levels"], strict=True):
        assert list(row) == [*levels_row, "mode"]
        assert row["mode"] in ("1x2", "2x1")
        assert row["flops_ratio"] == levels_row["flops_ratio"]
        # The memory of a process that imports PyTorch.
        assert row["peak_memory_mb"] > levels_row["peak_memory_mb"]
    assert set(report["against_torch"]) == set(LEVELS)
    assert min(report["against_torch"].values()) > 0


@pytest.mark.usefixtures("no_probe")
def test_a_source_relative_to_the_repository(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(exported / "tiny") == 2
    assert "'weights': no such file or folder" in capsys.readouterr().err
    monkeypatch.setattr(torch_eager, "ROOT", exported)
    assert run(exported / "tiny") == 0
    # A path in the current folder takes precedence.
    (tmp_path / "weights").mkdir()
    assert torch_eager.locate("weights") == "weights"


def test_sources_that_are_not_paths_stay_unchanged() -> None:
    for source in ("random:vit-s16", "google/vit-base-patch16-224", "/nowhere"):
        assert torch_eager.locate(source) == source
    assert Path(torch_eager.locate("pyproject.toml")).is_file()


@pytest.mark.usefixtures("no_probe")
def test_a_checkpoint_with_other_weights_is_refused(
    capsys: pytest.CaptureFixture[str], make_from: MakeFrom
) -> None:
    bundle = make_from(tiny.checkpoint(seed=1))
    assert run(bundle) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no longer has the bundle's weights" in captured.err
    # One weight differs slightly, as after a step of training.
    trained = tiny.checkpoint()
    with torch.no_grad():
        next(trained.model.parameters()).mul_(1.05)
    assert run(make_from(trained)) == 2
    assert run(make_from(tiny.checkpoint(dim=96))) == 2
    assert "not the network" in capsys.readouterr().err
    # int8 weights are rounded, so the tolerance is wider.
    assert run(make_from(trained, precision="int8")) == 0


def test_only_a_few_batches_are_converted_to_floats(here: Path) -> None:
    bundle = Bundle.open(here / "tiny")
    batches = random_batches(bundle.manifest.preprocess.size, 3)
    eager = torch_eager.ImageEager(bundle.manifest, batches)
    subject = eager.subject((0, 0, 0), 1, 1)
    assert subject.batch == 3
    first, second, third = (np.asarray(subject.run(turn)) for turn in range(3))
    assert (first == third).all()
    assert (first != second).any()
    graphs = ImageGraphs(bundle)
    eager.check(graphs, batches)
    np.testing.assert_allclose(first, graphs.run(batches[0], (0, 0, 0)), atol=1e-4)


@pytest.mark.usefixtures("no_probe")
def test_without_pytorch_the_error_names_the_extra(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tokenfold.bench.torch_eager", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(here / "tiny") == 2
    assert "pip install 'tokenfold[export]'" in capsys.readouterr().err
