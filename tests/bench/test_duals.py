"""The bench on a dual encoder: images at each level, texts, and a comparison with PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.bench.trivial import QUICK
from tokenfold.bench import command
from tokenfold.bench.subjects import DualGraphs, longest_texts, open_graphs, random_inputs
from tokenfold.bench.targets import choose
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.profile import LevelProfile, Profile
from tokenfold.bundle.writing import write_profile
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.quality.measuring import profile
from tokenfold.export.recipe import Recipe
from tokenfold.models.checkpoints import native
from tokenfold.models.checkpoints.checkpoint import AnyCheckpoint

LEVELS = {"exact": 0.0, "half": 0.3}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("exported")
    native.save(folder / "weights", tiny.dual_checkpoint())
    source = str(folder / "weights")
    recipe = Recipe(name="dual", levels=LEVELS)
    return export_bundle(tiny.dual_checkpoint(), source, folder / "dual", recipe)


def run(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> dict[str, Any]:
    assert command.main([str(folder), *QUICK, "--json", *arguments]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_measures_images_at_every_level_and_texts(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(capsys, bundle.folder, "--r", "2", "--batch", "2")
    assert [row["level"] for row in report["levels"]] == ["exact", "half", "r=2"]
    texts = report["texts"]
    assert texts["tokens"] == 12
    assert texts["texts_per_second"] > 0
    assert 0 < texts["p50_ms"] <= texts["p99_ms"]


@pytest.mark.usefixtures("no_probe")
def test_default_output_is_a_table(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(bundle.folder), *QUICK, "--levels"]) == 0
    shown = capsys.readouterr().out
    assert "texts of 12 tokens" in shown
    assert "texts/s" in shown


@pytest.mark.usefixtures("no_probe")
def test_comparison_with_torch_and_another_bundle(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--torch", "--threads", "1", "--compare", str(bundle.folder)]
    report = run(capsys, bundle.folder, *options)
    assert [row["level"] for row in report["torch"]] == list(LEVELS)
    assert [row["level"] for row in report["compare"]["levels"]] == list(LEVELS)


@pytest.mark.usefixtures("no_probe")
def test_a_checkpoint_with_other_weights_is_refused(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path(bundle.manifest.source)
    wrong_checkpoints: list[tuple[AnyCheckpoint, str]] = [
        (tiny.dual_checkpoint(seed=1), "no longer has"),
        (tiny.dual_checkpoint(siglip=True), "not the network"),
        (tiny.checkpoint(), "not the network"),
    ]
    for other, message in wrong_checkpoints:
        native.save(weights, other)
        try:
            assert command.main([str(bundle.folder), *QUICK, "--torch"]) == 2
        finally:
            native.save(weights, tiny.dual_checkpoint())
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_probe")
def test_save_writes_the_profile(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    old_levels = {"half": LevelProfile(neighbours={"exact": 0.9, "half": 1.0})}
    before: Profile = profile(old_levels, native=True)
    write_profile(bundle.folder, before)
    run(capsys, bundle.folder, "--save")
    after = Bundle.open(bundle.folder).profile
    assert after is not None
    assert after.texts_per_second is not None
    assert after.levels["half"].neighbours == old_levels["half"].neighbours
    assert [point.batch for point in after.levels["half"].latency] == [1, 2, 4, 8]


def test_texts_have_the_maximum_length(bundle: Bundle) -> None:
    graphs, images = open_graphs(bundle), random_inputs(bundle, 3)
    assert isinstance(graphs, DualGraphs)
    assert graphs.run(images[0], bundle.manifest.workload.unreduced).shape == (3, 40)
    ids, size = longest_texts(bundle, 3)[0]
    assert ids.shape == size.shape == (3, 12)
    assert size.all()
    assert list(choose(bundle.manifest, levels=["half"])) == ["exact", "half"]
