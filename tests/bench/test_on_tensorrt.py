"""`tokenfold bench --backend tensorrt` without TensorRT and without a GPU.

The CPU stands in for the engines; only the engine files are real.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.bench import fake_builder
from tests.bench.fake_builder import BYTES, STATIC_BYTES, TARGET
from tests.bench.trivial import Make
from tests.runtime.tensorrt import standin_builder
from tests.service.standin import until
from tokenfold.bench import command, engine_memory, engines, gpu_loading, on_gpu
from tokenfold.bench.device_memory import DevicePeak
from tokenfold.bench.gpu_report import GpuMachine, GpuReport
from tokenfold.bench.subjects import Graphs, open_graphs
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.models.checkpoints import native
from tokenfold.runtime.cuda import device, session
from tokenfold.runtime.pair import Float
from tokenfold.runtime.session import SessionOptions
from tokenfold.runtime.tensorrt import plugins, process, runtime, target, variant
from tokenfold.runtime.tensorrt.spec import EngineError, engine_specs
from tokenfold.runtime.tensorrt.store import EngineStore

QUICK = ("--backend", "tensorrt", "--rounds", "2", "--seconds", "0.001", "--batch", "1", "2")
MACHINE = GpuMachine(
    gpu="Standing In", driver="1.2", cuda="13.0", processor="x", versions={}, date="2026-01-02"
)
BROKEN = (
    *(sys.executable, "-c"),
    "import sys; print('tokenfold build: out of luck', file=sys.stderr); sys.exit(2)",
)
LEVELS = {"exact": 0.0, "most": 0.4}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the bundle `tiny`."""
    folder = tmp_path_factory.mktemp("exported")
    native.save(folder / "weights", tiny.checkpoint())
    recipe = Recipe(name="tiny", precision="fp16", levels=LEVELS)
    source = str(folder / "weights")
    return export_bundle(tiny.checkpoint(), source, folder / "tiny", recipe).folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a bundle for images with texts."""
    folder = tmp_path_factory.mktemp("exported")
    recipe = Recipe(name="pairs", levels=LEVELS)
    return export_bundle(tiny.pair_checkpoint(), "a test", folder / "pairs", recipe).folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the folder of the engines."""
    return tmp_path / "engines"


@pytest.fixture(autouse=True)
def openings(monkeypatch: pytest.MonkeyPatch) -> list[SessionOptions]:
    """Run on the CPU instead of a GPU with TensorRT; returns the options of each opened bundle."""
    opened: list[SessionOptions] = []

    def on_cpu(bundle: Bundle, opening: SessionOptions) -> Graphs:
        opened.append(opening)
        return open_graphs(bundle)

    def peak(*_args: object, backend: str, engines: Path | None, **_options: object) -> DevicePeak:
        assert (backend, engines is None) == ("tensorrt", False)
        return DevicePeak(100, 1100)

    monkeypatch.setattr(runtime, "missing", lambda: None)
    monkeypatch.setattr(session, "missing", lambda: None)
    monkeypatch.setattr(variant, "load", lambda: None)
    monkeypatch.setattr(plugins, "register", lambda _: None)
    monkeypatch.setattr(target, "current_target", lambda *_: TARGET)
    monkeypatch.setattr(process, "COMMAND", fake_builder.COMMAND)
    monkeypatch.setattr(gpu_loading, "open_graphs", on_cpu)
    monkeypatch.setattr(gpu_loading, "gpu_machine", lambda: MACHINE.model_copy(deep=True))
    monkeypatch.setattr(on_gpu, "measure_device_peak", peak)
    monkeypatch.setattr(
        engine_memory, "loaded_bytes", lambda *_args, static: 9_000_000 if static else 5_000_000
    )
    return opened


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the bench and returns its report."""

    def measure(*arguments: str | Path) -> dict[str, Any]:
        assert command.main([*map(str, arguments), *QUICK, "--engines", str(root), "--json"]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return measure


@pytest.fixture
def refusal(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a refused bench and returns its error line."""

    def refuse(*arguments: str | Path) -> str:
        assert command.main([*map(str, arguments), *QUICK, "--engines", str(root)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        *_, last = captured.err.splitlines()
        assert last.startswith("tokenfold bench: ")
        return last.removeprefix("tokenfold bench: ")

    return refuse


def test_engines_are_built_and_measured(
    exported: Path, root: Path, openings: list[SessionOptions], run: Callable[..., dict[str, Any]]
) -> None:
    report = run(exported, "--r", "2", "--no-memory")
    rows = [(row["batch"], row["level"]) for row in report["rows"]]
    assert rows == [(batch, level) for batch in (1, 2) for level in ("exact", "most", "r=2")]
    assert openings == [SessionOptions("tensorrt", engines=root, static=False)]
    assert report["tensorrt"] == {
        "version": "tensorrt 11.4.0",
        "gpu": TARGET.gpu,
        "plugins": TARGET.plugins,
        "engines": [{"graph": "model.onnx", "precision": "fp16", "bytes": BYTES}],
        "cuda": {},
        "static": {},
        "one": {"count": 1, "mb": BYTES / 1e6},
    }
    assert report["machine"]["versions"] == {"tensorrt": "11.4.0"}
    assert (report["precision"], report["lost"], report["complete"]) == ("fp16", [], True)


def test_onnx_runtime_and_single_plan_engines_are_compared(
    exported: Path, root: Path, openings: list[SessionOptions], run: Callable[..., dict[str, Any]]
) -> None:
    out = root.parent / "found.json"
    report = run(exported, "--r", "2", "--beside", "cuda", "--static-levels", "--out", out)
    engine = SessionOptions("tensorrt", engines=root, static=False)
    assert openings == [engine, SessionOptions("cuda"), engine._replace(static=True)]
    tensorrt = report["tensorrt"]
    assert [
        (engine_file.get("level"), engine_file["bytes"]) for engine_file in tensorrt["engines"]
    ] == [
        (None, BYTES),
        ("exact", STATIC_BYTES),
        ("most", STATIC_BYTES),
    ]
    for contender, levels in (("cuda", ["exact", "most", "r=2"]), ("static", ["exact", "most"])):
        assert list(tensorrt[contender]) == ["1", "2"]
        for rows in tensorrt[contender].values():
            assert [row["level"] for row in rows] == levels
            for row in rows:
                assert row["images_per_second"] > 0
                assert 0 < row["low"] <= row["ratio"] <= row["high"]
    assert tensorrt["one"] == {"count": 1, "mb": BYTES / 1e6, "loaded_mb": 5.0}
    assert tensorrt["each"] == {"count": 2, "mb": 2 * STATIC_BYTES / 1e6, "loaded_mb": 9.0}
    assert [row["level"] for row in report["memory"]] == ["exact", "most", "r=2"]
    assert (report["against"], report["lost"]) == ({}, [])
    assert json.loads(out.read_text()) == report
    saved_report = GpuReport.model_validate_json(out.read_text())
    assert saved_report.tensorrt is not None
    assert list(saved_report.tensorrt.comparisons()) == ["ONNX Runtime", "engine of one plan"]


def test_existing_engines_are_not_built(
    exported: Path,
    run: Callable[..., dict[str, Any]],
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(exported, "--no-memory")
    monkeypatch.setattr(process, "COMMAND", BROKEN)
    assert run(exported, "--no-memory")["tensorrt"]["one"]["count"] == 1
    assert refusal(exported, "--static-levels").endswith("cannot be built: out of luck")


def test_engines_of_another_bundle_are_rebuilt(
    exported: Path, root: Path, run: Callable[..., dict[str, Any]]
) -> None:
    bundle = Bundle.open(exported)
    (origin,) = engine_specs(bundle, TARGET)
    engine_files = EngineStore(root, bundle)
    engine_files.write(origin.model_copy(update={"sha256": "0" * 64}), b"foreign")
    with pytest.raises(EngineError, match="something else"):
        engine_files.find(origin)
    assert run(exported, "--no-memory")["tensorrt"]["engines"][0]["bytes"] == BYTES
    assert engine_files.find(origin).bytes == BYTES


def test_bfloat16_engines_are_measured_as_they_are(
    exported: Path, root: Path, run: Callable[..., dict[str, Any]]
) -> None:
    bundle = Bundle.open(exported)
    (origin,) = engine_specs(bundle, TARGET, precision="bf16")
    EngineStore(root, bundle).write(origin, bytes(7))
    engine_rows = run(exported, "--static-levels", "--no-memory")["tensorrt"]["engines"]
    assert [row["precision"] for row in engine_rows] == ["bf16"] * 3
    assert [row["bytes"] for row in engine_rows] == [7, STATIC_BYTES, STATIC_BYTES]


def test_a_network_with_texts_has_engines_for_two_graphs(
    pairs: Path, run: Callable[..., dict[str, Any]]
) -> None:
    report = run(pairs, "--beside", "cuda", "--static-levels")
    tensorrt = report["tensorrt"]
    levels = len(Bundle.open(pairs).manifest.levels)
    assert (tensorrt["one"]["count"], tensorrt["each"]["count"]) == (2, 1 + levels)
    assert tensorrt["each"]["mb"] == (BYTES + levels * STATIC_BYTES) / 1e6
    assert [row["level"] for row in tensorrt["static"]["2"]] == ["exact", "most"]
    assert "resident" not in report["rows"][0]
    assert GpuReport.model_validate(report).rows[0].resident is None


def test_engines_of_the_compared_bundle_are_built_too(
    exported: Path, root: Path, run: Callable[..., dict[str, Any]]
) -> None:
    other = export_bundle(
        tiny.checkpoint(), "a test", root.parent / "plain", Recipe(name="plain", method="none")
    )
    report = run(exported, "--compare", other.folder, "--no-memory")
    assert [row["level"] for row in report["against"]["1"]] == ["exact"]
    assert sorted(path.name.partition("-")[0] for path in root.iterdir()) == ["plain", "tiny"]


def test_a_bundle_that_cannot_be_compared_builds_nothing(
    exported: Path, make: Make, root: Path, refusal: Callable[..., str]
) -> None:
    assert "differ in image size" in refusal(exported, "--compare", make("other"))
    assert not root.exists()


def test_runs_with_different_logits_are_not_compared(
    exported: Path,
    run: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def on_cpu(bundle: Bundle, opening: SessionOptions) -> Graphs:
        graphs = open_graphs(bundle)
        correct_run = graphs.run

        def wrong_run(inputs: Any, plan: Plan) -> Float:
            return correct_run(inputs, plan) * (-1 if any(plan) else 1)

        if opening.device == "cuda":
            monkeypatch.setattr(graphs, "run", wrong_run)
        return graphs

    monkeypatch.setattr(gpu_loading, "open_graphs", on_cpu)
    report = run(exported, "--beside", "cuda", "--no-memory")
    assert [row["level"] for row in report["tensorrt"]["cuda"]["1"]] == ["exact"]
    assert report["lost"] == [
        "ONNX Runtime, most: its logits are off by 2.0e+00 of the bundle's norm"
    ]


def test_levels_without_a_dedicated_engine(
    exported: Path, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "fixed_plans", lambda *_: {(1, 1, 1)})
    report = run(exported, "--static-levels", "--no-memory")
    assert report["tensorrt"]["static"] == {}


def test_default_output_is_a_table(
    exported: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--engines", str(root), "--beside", "cuda", "--static-levels")
    assert command.main([str(exported), *QUICK, *options]) == 0
    shown = capsys.readouterr().out
    for text in (
        "tiny, fp16, batch 2",
        "ONNX Runtime",
        "engine of one plan",
        "one for each level",
        "loaded MB",
        "Engines of tensorrt 11.4.0 in fp16 for Standing In sm_90, plugins abababababab",
        "model.onnx, fp16, all plans: 3.0 MB",
        "model.onnx, fp16, most: 2.0 MB",
        "tensorrt 11.4.0",
    ):
        assert text in shown


def test_impossible_requests_are_refused(
    exported: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no level 'turbo'" in refusal(exported, "--levels", "turbo")
    with monkeypatch.context() as patched:
        patched.setattr(process, "COMMAND", BROKEN)
        assert refusal(exported) == "the engines of tiny cannot be built: out of luck"
        patched.setattr(process, "COMMAND", (sys.executable, "-c", "import sys; sys.exit(3)"))
        assert refusal(exported) == "the engines of tiny cannot be built: the builder exited with 3"

    def damaged(*_: object) -> Graphs:
        raise EngineError("x.engine is damaged:\nits sha256 differs")

    with monkeypatch.context() as patched:
        patched.setattr(gpu_loading, "open_graphs", damaged)
        assert refusal(exported) == "x.engine is damaged: its sha256 differs"
    with monkeypatch.context() as patched:
        patched.setattr(session, "missing", lambda: "no onnxruntime-gpu")
        assert refusal(exported, "--beside", "cuda") == "--beside cuda: no onnxruntime-gpu"
    with monkeypatch.context() as patched:
        patched.setattr(runtime, "missing", lambda: "no GPU was found")
        assert refusal(exported) == "--backend tensorrt: no GPU was found"
    int8 = Bundle.open(exported)
    int8.manifest = int8.manifest.model_copy(update={"precision": "int8"})
    monkeypatch.setattr(Bundle, "open", lambda _: int8)
    assert refusal(exported) == "tiny is an int8 bundle, which is for the CPU"


def test_the_real_builder_accepts_the_options(
    exported: Path, root: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.missing() is None:
        pytest.skip("there is a GPU")
    monkeypatch.setattr(
        process, "COMMAND", (sys.executable, "-m", "tokenfold.runtime.tensorrt.command")
    )
    bundle = Bundle.open(exported)
    reasons = [refusal(exported)]
    # The bfloat16 engine for all plans exists; engines for a single plan are missing.
    (origin,) = engine_specs(bundle, TARGET, precision="bf16")
    EngineStore(root, bundle).write(origin, bytes(7))
    reasons.append(refusal(exported, "--static-levels"))
    for reason in reasons:
        assert reason.startswith("the engines of tiny cannot be built: ")
        assert "argument" not in reason


def test_the_progress_of_a_build_is_shown(make: Make, root: Path) -> None:
    titles: list[tuple[str, int]] = []
    steps: list[int] = []

    def stage(title: str, count: int) -> Callable[[], None]:
        titles.append((title, count))
        return lambda: steps.append(1)

    engines.build_missing(Bundle.open(make()), root, static=True, stage=stage)
    # First the engine for all plans, then the engines for a single plan.
    assert titles == [("engines", 100)] * 2
    assert len(steps) == 200


def test_an_interrupt_ends_the_build(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = standin_builder.command(root, "a.engine", "b.engine", mode="hangs")
    monkeypatch.setattr(process, "COMMAND", tuple(line))
    steps: list[int] = []

    def interrupt(_title: str, _steps: int) -> Callable[[], None]:
        def step() -> None:
            steps.append(1)
            if len(steps) == 25:  # the builder hangs here
                until((root / standin_builder.CHILD).exists)
                raise KeyboardInterrupt

        return step

    with pytest.raises(KeyboardInterrupt):
        engines.build_missing(Bundle.open(make()), root, static=False, stage=interrupt)
    # The builder's child process ends too.
    for name in (standin_builder.PID, standin_builder.CHILD):
        number = int((root / name).read_text())
        until(lambda number=number: not standin_builder.alive(number))


def test_int8_engines_are_not_built(make: Make, root: Path) -> None:
    bundle = Bundle.open(make())
    bundle.manifest = bundle.manifest.model_copy(update={"precision": "int8"})
    with pytest.raises(EngineError, match="int8 bundle, which is for the CPU"):
        engines.build_missing(bundle, root, static=False, stage=lambda *_: lambda: None)
