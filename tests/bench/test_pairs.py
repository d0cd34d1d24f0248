"""The bench on a network with texts: levels, PuMer's published rates, comparison with PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.bench.trivial import QUICK
from tokenfold.bench import command
from tokenfold.bench.memory import measure_peak
from tokenfold.bench.subjects import PairGraphs, open_graphs, random_inputs
from tokenfold.bench.targets import TargetError, choose, runs_on
from tokenfold.bench.torch_eager import load_eager
from tokenfold.bundle.bundle import Bundle
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.models.checkpoints import native

LEVELS = {"exact": 0.0, "half": 0.3}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("exported")
    native.save(folder / "weights", tiny.pair_checkpoint())
    recipe = Recipe(name="pairs", levels=LEVELS)
    source = str(folder / "weights")
    return export_bundle(tiny.pair_checkpoint(), source, folder / "pairs", recipe)


@pytest.fixture(scope="module")
def plain(bundle: Bundle) -> Bundle:
    """Export the same network without reduction."""
    recipe = Recipe(name="plain", method="none")
    return export_bundle(tiny.pair_checkpoint(), "a test", bundle.folder.parent / "plain", recipe)


def run(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> dict[str, Any]:
    assert command.main([str(folder), *QUICK, "--json", *arguments]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_measures_levels_and_published_rates(
    bundle: Bundle, plain: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ["--rates", "0.1", "0.3", "0.2", "--rates", "0", "0.5", "0"]
    report = run(capsys, bundle.folder, *rates, "--compare", str(plain.folder), "--batch", "2")
    rows = {row["level"]: row for row in report["levels"]}
    assert list(rows) == ["exact", "half", "0.1/0.3/0.2", "0/0.5/0"]
    for row in rows.values():
        assert row["images_per_second"] > 0
        assert row["efficiency"] == pytest.approx(row["speedup"] * row["flops_ratio"])
    assert rows["half"]["flops_ratio"] == pytest.approx(0.7, abs=0.05)
    assert report["memory"][0]["peak_ratio"] == 1.0
    # A bundle of another method only shares the unreduced plan, which may differ in length.
    assert [row["level"] for row in report["compare"]["levels"]] == ["exact"]


@pytest.mark.usefixtures("no_probe")
def test_torch_answers_the_same_questions(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(capsys, bundle.folder, "--torch", "--threads", "1")
    assert [row["level"] for row in report["torch"]] == list(LEVELS)
    assert set(report["against_torch"]) == set(LEVELS)


def test_torch_merges_in_the_tower_as_the_bundle_does(tmp_path: Path) -> None:
    native.save(tmp_path / "weights", tiny.meter_checkpoint())
    recipe = Recipe(name="meter", tower=2, levels={"exact": 0.0})
    source = str(tmp_path / "weights")
    merging = export_bundle(tiny.meter_checkpoint(), source, tmp_path / "meter", recipe)
    load_eager(merging, 1).check(open_graphs(merging), random_inputs(merging, 1))


@pytest.mark.usefixtures("no_probe")
def test_a_checkpoint_with_other_weights_is_refused(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path(bundle.manifest.source)
    for changes, message in [({"seed": 1}, "no longer has"), ({"depth": 5}, "not the network")]:
        native.save(weights, tiny.pair_checkpoint(**changes))
        try:
            assert command.main([str(bundle.folder), *QUICK, "--torch"]) == 2
        finally:
            native.save(weights, tiny.pair_checkpoint())
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_probe")
def test_save_writes_the_profile(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, bundle.folder, "--save")
    profile = Bundle.open(bundle.folder).profile
    assert profile is not None
    assert [point.batch for point in profile.levels["half"].latency] == [1, 2, 4, 8]


def test_memory_of_a_process(bundle: Bundle) -> None:
    peak = measure_peak(bundle.folder, bundle.manifest.levels["half"].plan, batch=2, callers=2)
    assert 0 <= peak.working < peak.total


def test_texts_have_the_maximum_length(bundle: Bundle) -> None:
    graphs, inputs = open_graphs(bundle), random_inputs(bundle, 3)
    assert isinstance(graphs, PairGraphs)
    assert inputs[0].ids.shape == inputs[0].size.shape == (3, 12)
    assert inputs[0].size.all()
    assert inputs[0].task == "vqa"
    logits = graphs.run(inputs[0], bundle.manifest.workload.unreduced)
    assert logits.shape == (3, 5)


def test_plans_of_another_method(bundle: Bundle, plain: Bundle) -> None:
    manifest, plain_manifest = bundle.manifest, plain.manifest
    with pytest.raises(TargetError, match="rates, not r"):
        choose(manifest, [8])
    with pytest.raises(TargetError, match="only PuMer has rates"):
        choose(plain_manifest, rates=[(0.1, 0.3, 0.2)])
    assert runs_on(manifest, plain_manifest, manifest.workload.unreduced)
    assert not runs_on(manifest, plain_manifest, manifest.levels["half"].plan)
    assert runs_on(manifest, manifest, manifest.levels["half"].plan)
