"""`tokenfold bench --backend cuda` where there is no GPU: the CPU stands in for it."""

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
    """The bundle `tiny`."""
    folder = tmp_path_factory.mktemp("exported")
    native.save(folder / "weights", tiny.checkpoint())
    recipe = Recipe(name="tiny", levels={"exact": 0.0, "most": 0.4})
    source = str(folder / "weights")
    return export_bundle(tiny.checkpoint(), source, folder / "tiny", recipe).folder


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU be the GPU."""
    peaks = iter([DevicePeak(100, 1100), DevicePeak(100, 600)] * 2)
    monkeypatch.setattr(session, "missing", lambda: None)
    monkeypatch.setattr(gpu_loading, "open_graphs", lambda bundle, _opening: ImageGraphs(bundle))
    monkeypatch.setattr(gpu_loading, "gpu_machine", lambda: MACHINE.model_copy(deep=True))
    monkeypatch.setattr(on_gpu, "measure_device_peak", lambda *_args, **_options: next(peaks))


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert command.main([*map(str, arguments), *QUICK, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("stand_in")
def test_every_level_at_every_batch(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, exported, "--r", "2", "--out", tmp_path / "found.json", "--no-memory")
    rows = [(row["batch"], row["level"]) for row in found["rows"]]
    assert rows == [(batch, level) for batch in (1, 2) for level in ("exact", "most", "r=2")]
    for row in found["rows"]:
        for speed in (row["resident"], row["served"]):
            assert speed["images_per_second"] > 0
            assert speed["low"] <= speed["speedup"] <= speed["high"]
            assert speed["efficiency"] == pytest.approx(speed["speedup"] * row["flops_ratio"])
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert found["rows"][0]["resident"]["speedup"] == 1.0
    assert (found["torch"], found["memory"], found["lost"]) == ([], [], [])
    assert "tensorrt" not in found
    assert found["complete"]
    assert json.loads((tmp_path / "found.json").read_text()) == found


@pytest.mark.usefixtures("stand_in")
def test_what_there_is_is_kept_and_told_at_once(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_args: object, **_options: object) -> DevicePeak:
        raise KeyboardInterrupt

    monkeypatch.setattr(on_gpu, "measure_device_peak", interrupt)
    out = tmp_path / "found.json"
    assert command.main([str(exported), *QUICK, "--out", str(out)]) == 130
    kept = GpuReport.model_validate_json(out.read_text())
    assert [row.batch for row in kept.rows] == [1, 1, 2, 2]
    assert not kept.complete
    told = capsys.readouterr().err
    assert told.index("batch 1") < told.index("batch 2")
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.usefixtures("stand_in")
def test_memory_is_of_the_largest_batch(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unreduced, most = run(capsys, exported)["memory"]
    assert (unreduced["batch"], unreduced["level"], unreduced["working_ratio"]) == (2, "exact", 1.0)
    assert (most["peak_mb"], most["working_mb"], most["working_ratio"]) == (0.0006, 0.0005, 0.5)


@pytest.mark.usefixtures("stand_in")
def test_a_table_for_people(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(exported), *QUICK, "--compare", str(exported)]) == 0
    shown = capsys.readouterr().out
    for text in ("tiny, fp32, batch 2", "from host", "efficiency", "beyond loading", "Standing In"):
        assert text in shown
    assert "Compared with" in shown
    assert "torch" not in shown


@pytest.mark.usefixtures("stand_in")
def test_torch_is_measured_in_processes_of_its_own(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = ("--torch", "eager", "--torch-wait", "120", "--no-memory")
    found = run(capsys, exported, *ways)
    assert [(row["way"], row["level"], row["batch"]) for row in found["torch"]] == [
        ("eager", level, batch) for batch in (1, 2) for level in ("exact", "most")
    ]
    for row in found["torch"]:
        assert row["images_per_second"] > 0
        assert row["low"] <= row["ratio"] <= row["high"]
        assert not row["graph"]
    assert found["machine"]["versions"]["torch"]
    assert "torch" not in {name.partition(".")[0] for name in MACHINE.versions}


@pytest.mark.usefixtures("stand_in")
def test_what_torch_cannot_do_is_left_out_and_told(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (sys.executable, "-c", "import sys; sys.exit('out of luck')")
    monkeypatch.setattr(workers, "COMMAND", broken)
    found = run(capsys, exported, "--torch", "compiled", "--torch-levels", "most", "--no-memory")
    assert found["torch"] == []
    assert found["lost"] == [
        f"PyTorch compiled, most, batch {batch}: out of luck" for batch in (1, 2)
    ]
    slow = (sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.setattr(workers, "COMMAND", slow)
    found = run(capsys, exported, "--torch", "eager", "--torch-wait", "0.2", "--no-memory")
    assert "not ready within 0.2 s" in found["lost"][0]


@pytest.mark.usefixtures("stand_in")
def test_another_network_is_not_measured(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = '{"torch": "1", "logits": [[[9, 9, 9, 9, 9]], [[0]], [[NaN]], [[0]]]}'
    other = (sys.executable, "-c", f"import time; print('{answer}', flush=True); time.sleep(60)")
    monkeypatch.setattr(workers, "COMMAND", other)
    found = run(capsys, exported, "--torch", "eager", "--no-memory")
    assert found["torch"] == []
    assert len(found["lost"]) == 4
    assert all("its logits are off by" in one for one in found["lost"])


@pytest.mark.usefixtures("stand_in")
def test_where_torch_dies_the_rest_is_measured(
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
    found = run(capsys, exported, "--torch", "eager", "--no-memory")
    assert found["lost"] == ["PyTorch, batch 1: gone", "PyTorch, batch 2: gone"]
    assert len(found["rows"]) == 4
    assert found["torch"] == []


@pytest.mark.usefixtures("stand_in")
def test_what_cannot_be_measured(
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
def test_without_a_gpu_it_says_what_is_missing(
    backend: str,
    missing: Callable[[], str | None],
    exported: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if missing() is None:
        pytest.skip("there is a GPU")
    assert command.main([str(exported), "--backend", backend]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tokenfold bench: --backend {backend}: ")


@pytest.mark.parametrize(
    ("wrong", "why"),
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
def test_options_of_the_other_backend(
    wrong: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["bundle", *wrong])
    assert exit_.value.code == 2
    assert why in capsys.readouterr().err
