"""`tokenfold bench --backend cuda` without a GPU: the CPU stands in for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tokenfold.bench import command, gpu_loading, on_gpu, workers
from tokenfold.bench.device_memory import DevicePeak
from tokenfold.bench.gpu_report import GpuMachine, GpuReport
from tokenfold.bench.subjects import ImageGraphs, random_batches
from tokenfold.bundle.bundle import Bundle
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.models.checkpoints import native
from tokenfold.runtime.cuda import session
from tokenfold.runtime.tensorrt import runtime

QUICK = ("--backend", "cuda", "--rounds", "2", "--seconds", "0.001", "--batch", "1", "2")
MACHINE = GpuMachine(
    gpu="Standing In", driver="1.2", cuda="13.0", processor="x", versions={}, date="2026-01-02"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the bundle `tiny`."""
    folder = tmp_path_factory.mktemp("exported")
    native.save(folder / "weights", tiny.checkpoint())
    recipe = Recipe(name="tiny", levels={"exact": 0.0, "most": 0.4})
    source = str(folder / "weights")
    return export_bundle(tiny.checkpoint(), source, folder / "tiny", recipe).folder


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the CPU instead of the GPU."""
    peaks = iter([DevicePeak(100, 1100), DevicePeak(100, 600)] * 2)
    monkeypatch.setattr(session, "missing", lambda: None)
    monkeypatch.setattr(gpu_loading, "open_graphs", lambda bundle, _opening: ImageGraphs(bundle))
    monkeypatch.setattr(gpu_loading, "gpu_machine", lambda: MACHINE.model_copy(deep=True))
    monkeypatch.setattr(on_gpu, "measure_device_peak", lambda *_args, **_options: next(peaks))


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert command.main([*map(str, arguments), *QUICK, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.mark.usefixtures("stand_in")
def test_every_level_at_every_batch(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(capsys, exported, "--r", "2", "--out", tmp_path / "report.json", "--no-memory")
    rows = [(row["batch"], row["level"]) for row in report["rows"]]
    assert rows == [(batch, level) for batch in (1, 2) for level in ("exact", "most", "r=2")]
    for row in report["rows"]:
        for speed in (row["resident"], row["served"]):
            assert speed["images_per_second"] > 0
            assert speed["low"] <= speed["speedup"] <= speed["high"]
            assert speed["efficiency"] == pytest.approx(speed["speedup"] * row["flops_ratio"])
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert report["rows"][0]["resident"]["speedup"] == 1.0
    assert (report["torch"], report["memory"], report["lost"]) == ([], [], [])
    assert "tensorrt" not in report
    assert report["complete"]
    assert json.loads((tmp_path / "report.json").read_text()) == report


@pytest.mark.usefixtures("stand_in")
def test_each_batch_size_is_saved_and_printed_when_measured(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_args: object, **_options: object) -> DevicePeak:
        raise KeyboardInterrupt

    monkeypatch.setattr(on_gpu, "measure_device_peak", interrupt)
    out = tmp_path / "report.json"
    assert command.main([str(exported), *QUICK, "--out", str(out)]) == 130
    saved_report = GpuReport.model_validate_json(out.read_text())
    assert [row.batch for row in saved_report.rows] == [1, 1, 2, 2]
    assert not saved_report.complete
    stderr = capsys.readouterr().err
    assert stderr.index("batch 1") < stderr.index("batch 2")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.usefixtures("stand_in")
def test_memory_is_of_the_largest_batch(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unreduced, reduced = run(capsys, exported)["memory"]
    assert (unreduced["batch"], unreduced["level"], unreduced["working_ratio"]) == (2, "exact", 1.0)
    assert (reduced["peak_mb"], reduced["working_mb"], reduced["working_ratio"]) == (
        0.0006,
        0.0005,
        0.5,
    )


@pytest.mark.usefixtures("stand_in")
def test_default_output_is_a_table(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(exported), *QUICK, "--compare", str(exported)]) == 0
    shown = capsys.readouterr().out
    for text in ("tiny, fp32, batch 2", "from host", "efficiency", "beyond loading", "Standing In"):
        assert text in shown
    assert "Compared with" in shown
    assert "torch" not in shown


@pytest.mark.usefixtures("stand_in")
def test_torch_runs_in_separate_processes(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = ("--torch", "eager", "--torch-wait", "120", "--no-memory")
    report = run(capsys, exported, *ways)
    assert [(row["way"], row["level"], row["batch"]) for row in report["torch"]] == [
        ("eager", level, batch) for batch in (1, 2) for level in ("exact", "most")
    ]
    for row in report["torch"]:
        assert row["images_per_second"] > 0
        assert row["low"] <= row["ratio"] <= row["high"]
        assert not row["graph"]
    assert report["machine"]["versions"]["torch"]
    assert "torch" not in {name.partition(".")[0] for name in MACHINE.versions}


@pytest.mark.usefixtures("stand_in")
def test_failed_torch_runs_are_reported_and_left_out(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (sys.executable, "-c", "import sys; sys.exit('out of luck')")
    monkeypatch.setattr(workers, "COMMAND", broken)
    report = run(capsys, exported, "--torch", "compiled", "--torch-levels", "most", "--no-memory")
    assert report["torch"] == []
    assert report["lost"] == [
        f"PyTorch compiled, most, batch {batch}: out of luck" for batch in (1, 2)
    ]
    slow = (sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.setattr(workers, "COMMAND", slow)
    report = run(capsys, exported, "--torch", "eager", "--torch-wait", "0.2", "--no-memory")
    assert "not ready within 0.2 s" in report["lost"][0]


@pytest.mark.usefixtures("stand_in")
def test_another_network_is_not_measured(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = '{"torch": "1", "logits": [[[9, 9, 9, 9, 9]], [[0]], [[NaN]], [[0]]]}'
    other = (sys.executable, "-c", f"import time; print('{answer}', flush=True); time.sleep(60)")
    monkeypatch.setattr(workers, "COMMAND", other)
    report = run(capsys, exported, "--torch", "eager", "--no-memory")
    assert report["torch"] == []
    assert len(report["lost"]) == 4
    assert all("its logits are off by" in reason for reason in report["lost"])


@pytest.mark.usefixtures("stand_in")
def test_a_dead_torch_process_does_not_stop_the_bench(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(exported)
    logits = [
        ImageGraphs(bundle)
        .run(random_batches(bundle.manifest.preprocess.size, batch, 1)[0], plan)
        .tolist()
        for plan in [level.plan for level in bundle.manifest.levels.values()]
        for batch in (1, 2)
    ]
    answer = json.dumps({"torch": "1", "logits": logits})
    dies = (sys.executable, "-c", f"import sys; print('{answer}', flush=True); sys.exit('gone')")
    monkeypatch.setattr(workers, "COMMAND", dies)
    report = run(capsys, exported, "--torch", "eager", "--no-memory")
    assert report["lost"] == ["PyTorch, batch 1: gone", "PyTorch, batch 2: gone"]
    assert len(report["rows"]) == 4
    assert report["torch"] == []


@pytest.mark.usefixtures("stand_in")
def test_impossible_requests_are_refused(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*arguments: str) -> str:
        assert command.main([str(exported), *QUICK, *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    assert "r=9" in refusal("--torch", "--torch-levels", "r=9")
    assert "no level 'turbo'" in refusal("--levels", "turbo")
    int8 = Bundle.open(exported)
    int8.manifest = int8.manifest.model_copy(update={"precision": "int8"})
    monkeypatch.setattr(Bundle, "open", lambda _folder: int8)
    assert "int8 bundle, which is for the CPU" in refusal()
    monkeypatch.setattr(session, "missing", lambda: "no GPU was found")
    assert refusal() == "tokenfold bench: --backend cuda: no GPU was found\n"


@pytest.mark.parametrize(
    ("backend", "missing"), [("cuda", session.missing), ("tensorrt", runtime.missing)]
)
def test_without_a_gpu_the_error_names_what_is_missing(
    backend: str,
    missing: Callable[[], str | None],
    exported: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if missing() is None:
        pytest.skip("this machine has a GPU")
    assert command.main([str(exported), "--backend", backend]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tokenfold bench: --backend {backend}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1", "2"], "--backend cuda or tensorrt only"),
        (["--torch", "compiled"], "is for --backend cuda or tensorrt"),
        (["--out", "x"], "are for --backend cuda or tensorrt"),
        (["--backend", "cuda", "--save"], "--save is for --backend cpu"),
        (["--backend", "cuda", "--static-levels"], "are for --backend tensorrt"),
        (["--backend", "cuda", "--beside", "cuda"], "are for --backend tensorrt"),
        (["--engines", "x"], "are for --backend tensorrt"),
        (["--backend", "tensorrt", "--beside", "cpu"], "invalid choice"),
        (["--backend", "tpu"], "invalid choice"),
    ],
)
def test_options_for_another_backend_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["bundle", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
