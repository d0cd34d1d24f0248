"""`tokenfold bench` on small graphs: what it measures, prints, saves, refuses. Never how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import onnx
import psutil  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

from export import bench
from export.bundle import (
    MODEL,
    Bundle,
    Level,
    LevelProfile,
    Manifest,
    Profile,
    Quality,
    stored_files,
    write_manifest,
    write_profile,
    writing,
)
from export.memory import MemoryProbeError, peak_mb
from export.targets import TargetError, choose, runs_on
from models.checkpoints import native
from models.checkpoints.checkpoint import Checkpoint
from models.preprocess import Preprocess
from models.reduction.schedule import Method, Plan, flops_ratio, widths
from models.vit import VisionConfig, VisionTransformer

CONFIG = VisionConfig(
    image_size=(8, 8), patch_size=4, dim=8, depth=2, heads=2, mlp_dim=16, classes=3
)
LABELS = ("a", "b", "c")
ROW = [
    "level",
    "reduction",
    "flops_ratio",
    "images_per_second",
    "speedup",
    "efficiency",
    "p50_ms",
    "p99_ms",
    "peak_memory_mb",
]
QUICK = ["--rounds", "2", "--seconds", "0.001"]
MB_PER_TOKEN = 4.0

Make = Callable[..., Path]


def graph() -> onnx.ModelProto:
    """Mean colours as logits; every token that the plan removes costs 2**20 floats of memory."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "sides"], ["mean"], keepdims=0),
        helper.make_node("ReduceSum", ["plan"], ["removed"], keepdims=1),
        helper.make_node("Mul", ["removed", "floats"], ["length"]),
        helper.make_node("ConstantOfShape", ["length"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=1),
        helper.make_node("Add", ["mean", "zero"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["slots"], to=TensorProto.INT64),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3]),
        helper.make_tensor_value_info("plan", TensorProto.INT64, [CONFIG.depth]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info("slots", TensorProto.INT64, ["batch", 3]),
    ]
    constants = [
        helper.make_tensor("sides", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("floats", TensorProto.INT64, [1], [2**20]),
    ]
    made = helper.make_graph(nodes, "mean", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def level(method: Method, plan: Plan, reduction: float) -> Level:
    workload = CONFIG.workload(method)
    return Level(
        reduction=reduction,
        plan=plan,
        flops_ratio=flops_ratio(workload, plan),
        tokens_out=widths(workload, plan)[-1],
    )


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a bundle of three levels, or what its arguments say."""

    def write(
        name: str = "tiny",
        *,
        method: Method = "tome",
        levels: dict[str, Level] | None = None,
        source: str = "nowhere",
        size: tuple[int, int] = (8, 8),
    ) -> Path:
        if levels is None:
            levels = {"exact": level(method, (0, 0), 0.0)}
            if method != "none":
                levels["half"] = level(method, (1, 1), 0.3)
                levels["most"] = level(method, (2, 1), 0.5)
        with writing(tmp_path / name) as folder:
            onnx.save(graph(), folder / MODEL)
            manifest = Manifest(
                name=name,
                source=source,
                precision="fp32",
                workload=CONFIG.workload(method),
                preprocess=Preprocess(size=size),
                labels=LABELS,
                levels=levels,
                default_level=next(iter(levels)),
                versions={},
                files=stored_files(folder),
            )
            write_manifest(folder, manifest)
        return tmp_path / name

    return write


@pytest.fixture(autouse=True)
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs here, there is no notice of it."""
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: 0.0)


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the processes whose memory is watched."""
    monkeypatch.setattr(bench, "peak_mb", lambda *_args, **_options: 100.0)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert bench.main([*map(str, arguments), *QUICK, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that says why it cannot be measured."""
    assert bench.main([*map(str, arguments), *QUICK, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    # A checkout without a compiler has no native ops, which is said first.
    lines = [line for line in captured.err.splitlines() if "make plugins" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("tokenfold bench: ")
    return lines[0]


def test_json_has_the_promised_shape(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, make(), "--r", "1")
    rows = found["levels"]
    assert [row["level"] for row in rows] == ["exact", "half", "most", "r=1"]
    for row in rows:
        assert list(row) == ROW
        assert row["images_per_second"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["efficiency"] == pytest.approx(row["speedup"] * row["flops_ratio"])
        assert row["peak_memory_mb"] > 10
    assert [row["reduction"] for row in rows[:3]] == [0.0, 0.3, 0.5]
    assert rows[3]["reduction"] == pytest.approx(1 - rows[3]["flops_ratio"])
    assert (rows[0]["speedup"], rows[0]["flops_ratio"]) == (1.0, 1.0)
    assert found["threads"] == len(os.sched_getaffinity(0))
    assert "onnxruntime" in found["runtime"]
    assert "torch" not in found
    assert "compare" not in found


@pytest.mark.usefixtures("no_probe")
def test_a_table_for_people(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([str(make()), *QUICK]) == 0
    shown = capsys.readouterr().out
    for text in ("exact", "half", "most", "images/s", "efficiency", "tiny, fp32", "2 rounds"):
        assert text in shown


@pytest.mark.usefixtures("no_probe")
def test_notices_and_progress_stay_off_stdout(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: 75.0)
    monkeypatch.setenv("TOKENFOLD_ORT_LIBRARY", "none")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    assert bench.main([str(make()), *QUICK, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["runtime"].endswith("portable ops")
    for text in ("75 % of the processor", "portable ones run", "speed", "memory"):
        assert text in captured.err


def test_the_unreduced_plan_is_always_measured_first(make: Make) -> None:
    reduced = {"half": level("tome", (1, 1), 0.3), "most": level("tome", (2, 1), 0.5)}
    manifest = Bundle.open(make(levels=reduced)).manifest
    assert list(choose(manifest)) == ["r=0", "half", "most"]
    assert list(choose(manifest, [1, 0])) == ["r=0", "half", "most", "r=1"]

    whole = Bundle.open(make()).manifest
    assert list(choose(whole, [1], levels=["most"])) == ["exact", "most", "r=1"]
    assert list(choose(whole, [1], levels=[])) == ["exact", "r=1"]
    assert choose(whole, [2])["r=2"].plan == (2, 2)
    assert choose(whole)["exact"] == ((0, 0), 0.0, 1.0)


def test_plans_that_do_not_exist(make: Make) -> None:
    manifest = Bundle.open(make()).manifest
    with pytest.raises(TargetError, match="no level 'none'; known: exact, half, most"):
        choose(manifest, levels=["none"])
    plain = Bundle.open(make("plain", method="none")).manifest
    with pytest.raises(TargetError, match="method none"):
        choose(plain, [8])
    assert runs_on(manifest, plain, (0, 0))
    assert not runs_on(manifest, plain, (1, 1))
    assert runs_on(plain, manifest, (0, 0))
    with pytest.raises(TargetError, match="differ"):
        runs_on(manifest, Bundle.open(make("large", size=(16, 16))).manifest, (0, 0))


def test_memory_is_of_one_plan_and_of_all_its_callers(make: Make) -> None:
    folder = make()
    little = peak_mb(folder, (0, 0), batch=1, callers=1)
    much = peak_mb(folder, (8, 8), batch=1, callers=1)
    at_once = peak_mb(folder, (8, 8), batch=1, callers=3)
    one = 16 * MB_PER_TOKEN
    assert little + one * 0.9 < much < little + one * 3
    assert much + one * 0.9 < at_once


def test_a_failing_memory_probe_says_why(tmp_path: Path) -> None:
    with pytest.raises(MemoryProbeError, match=r"manifest\.json is missing"):
        peak_mb(tmp_path, (0, 0), batch=1, callers=1)


@pytest.mark.usefixtures("no_probe")
def test_save_keeps_the_quality(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make()
    quality = Quality(metric="top1", value=0.8, low=0.7, high=0.9, samples=50)
    old = LevelProfile(quality=quality, images_per_second=1e9, peak_memory_mb=1.0)
    write_profile(
        folder,
        Profile(measured=date(2000, 1, 1), machine="old", runtime="old", levels={"half": old}),
    )
    rows = {row["level"]: row for row in run_json(capsys, folder, "--save", "--r", "1")["levels"]}
    # Opening checks the checksums too.
    profile = Bundle.open(folder).profile
    assert profile is not None
    assert list(profile.levels) == ["exact", "half", "most"]
    assert profile.levels["half"].quality == quality
    assert profile.levels["most"].quality is None
    assert profile.measured != date(2000, 1, 1)
    assert profile.machine.endswith("cores")
    assert profile.runtime.startswith("onnxruntime")
    for name, saved in profile.levels.items():
        assert [point.batch for point in saved.latency] == [1, 2, 4, 8]
        assert saved.latency[0].p50_ms == rows[name]["p50_ms"]
        assert saved.images_per_second == rows[name]["images_per_second"]
        assert saved.peak_memory_mb == 100.0
    run_json(capsys, folder, "--save")


@pytest.mark.usefixtures("no_probe")
def test_compare_with_another_bundle(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder, plain = make(), make("plain", method="none")
    found = run_json(capsys, folder, "--compare", plain)
    # The other reduces nothing: only the unreduced plan runs on both.
    (compared,) = found["compare"]["levels"]
    assert compared["level"] == "exact"
    assert compared["low"] <= compared["ratio"] <= compared["high"]
    assert len(found["levels"]) == 3
    found = run_json(capsys, folder, "--compare", make("again"))
    assert [one["level"] for one in found["compare"]["levels"]] == ["exact", "half", "most"]
    assert bench.main([str(folder), "--compare", str(plain), *QUICK]) == 0
    assert "Compared with" in capsys.readouterr().out


def checkpoint(folder: Path, config: VisionConfig = CONFIG) -> str:
    preprocess = Preprocess(size=config.image_size)
    native.save(folder, Checkpoint(VisionTransformer(config), preprocess, LABELS))
    return str(folder)


def test_torch_runs_the_same_plans(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(source=checkpoint(tmp_path / "weights"))
    found = run_json(capsys, folder, "--torch", "--levels", "most", "--threads", "2")
    rows = found["torch"]
    assert [row["level"] for row in rows] == ["exact", "most"]
    for row, own in zip(rows, found["levels"], strict=True):
        assert list(row) == [*ROW, "mode"]
        assert row["mode"] in ("1x2", "2x1")
        assert row["flops_ratio"] == own["flops_ratio"]
        # A process with PyTorch in it.
        assert row["peak_memory_mb"] > own["peak_memory_mb"]
    assert set(found["against_torch"]) == {"exact", "most"}
    assert min(found["against_torch"].values()) > 0


@pytest.mark.usefixtures("no_probe")
def test_torch_needs_the_checkpoint_and_pytorch(
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "nowhere" in refusal(capsys, make(), "--torch")
    other = checkpoint(tmp_path / "other", CONFIG.model_copy(update={"mlp_dim": 32}))
    assert "is not the network" in refusal(capsys, make(source=other), "--torch")
    monkeypatch.delitem(sys.modules, "export.eager", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'tokenfold[export]'" in refusal(capsys, make(), "--torch")


def test_nothing_of_the_export_extra_is_imported_without_need() -> None:
    line = (
        "import export.bench, sys; sys.exit(not sys.modules.keys().isdisjoint(['torch', 'onnx']))"
    )
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0


def test_an_interrupt_ends_quietly(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object, **_options: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "peak_mb", interrupt)
    assert bench.main([str(make()), "--json"]) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_probe")
def test_what_cannot_be_measured(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "manifest.json is missing" in refusal(capsys, tmp_path)
    assert "manifest.json is missing" in refusal(capsys, tmp_path / "absent")
    folder = make()
    assert "no level 'turbo'" in refusal(capsys, folder, "--levels", "turbo")
    assert "differ" in refusal(capsys, folder, "--compare", make("large", size=(16, 16)))
    assert "--batch" in refusal(capsys, folder, "--save", "--batch", "2")
    assert "--levels" in refusal(capsys, folder, "--save", "--levels", "half")
    (folder / MODEL).write_bytes(b"altered")
    assert "sha256 differs" in refusal(capsys, folder)
    (folder / "manifest.json").write_text("{}")
    assert "manifest.json" in refusal(capsys, folder)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--rounds", "0"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--seconds", "soon"],
        ["--threads", "0"],
        ["--batch", "x"],
        ["--r", "-1"],
        ["--turbo"],
    ],
)
def test_wrong_options(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        bench.main(["bundle", *wrong])
    assert exit_.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_help_says_how_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        bench.main(["--help"])
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("--compare", "--torch", "medians over the rounds", "p50 and p99 are times of"):
        assert text in shown
