"""`tokenfold bench --backend tensorrt` where there is neither it nor a GPU: what it builds, runs,
tells and refuses. The CPU stands in for engines, of which only the files are real.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.bench import standing_in
from tests.bench.standing_in import BYTES, STATIC_BYTES, TARGET
from tests.bench.trivial import Make
from tests.runtime.tensorrt import standin_builder
from tests.service.standin import until
from tokenfold.bench import command, engine_memory, engines, gpu_loading, on_gpu
from tokenfold.bench.device_memory import DevicePeak
from tokenfold.bench.gpu_report import GpuMachine, GpuReport
from tokenfold.bench.subjects import Graphs, opened
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.models.checkpoints import native
from tokenfold.runtime.cuda import device, session
from tokenfold.runtime.pair import Float
from tokenfold.runtime.session import SessionOptions
from tokenfold.runtime.tensorrt import flavour, plugins, process, runtime, target
from tokenfold.runtime.tensorrt.engines import Engines
from tokenfold.runtime.tensorrt.origin import EngineError, origins

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
    """The bundle `tiny`."""
    folder = tmp_path_factory.mktemp("exported")
    native.save(folder / "weights", tiny.checkpoint())
    recipe = Recipe(name="tiny", precision="fp16", levels=LEVELS)
    source = str(folder / "weights")
    return export_bundle(tiny.checkpoint(), source, folder / "tiny", recipe).folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for images with texts."""
    folder = tmp_path_factory.mktemp("exported")
    recipe = Recipe(name="pairs", levels=LEVELS)
    return export_bundle(tiny.pair_checkpoint(), "a test", folder / "pairs", recipe).folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the engines are."""
    return tmp_path / "engines"


@pytest.fixture(autouse=True)
def openings(monkeypatch: pytest.MonkeyPatch) -> list[SessionOptions]:
    """Lets the CPU be the GPU, with a TensorRT on it; how graphs were to be opened there."""
    found: list[SessionOptions] = []

    def on_cpu(bundle: Bundle, opening: SessionOptions) -> Graphs:
        found.append(opening)
        return opened(bundle)

    def peak(*_args: object, backend: str, engines: Path | None, **_options: object) -> DevicePeak:
        assert (backend, engines is None) == ("tensorrt", False)
        return DevicePeak(100, 1100)

    monkeypatch.setattr(runtime, "missing", lambda: None)
    monkeypatch.setattr(session, "missing", lambda: None)
    monkeypatch.setattr(flavour, "load", lambda: None)
    monkeypatch.setattr(plugins, "registered", lambda _: None)
    monkeypatch.setattr(target, "here", lambda *_: TARGET)
    monkeypatch.setattr(process, "COMMAND", standing_in.COMMAND)
    monkeypatch.setattr(gpu_loading, "opened", on_cpu)
    monkeypatch.setattr(gpu_loading, "gpu_machine", lambda: MACHINE.model_copy(deep=True))
    monkeypatch.setattr(on_gpu, "device_peak", peak)
    monkeypatch.setattr(
        engine_memory, "loaded", lambda *_args, static: 9_000_000 if static else 5_000_000
    )
    return found


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Measures, and returns the report."""

    def measured(*arguments: str | Path) -> dict[str, Any]:
        assert command.main([*map(str, arguments), *QUICK, "--engines", str(root), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return measured


@pytest.fixture
def refusal(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that says why it cannot be measured."""

    def said(*arguments: str | Path) -> str:
        assert command.main([*map(str, arguments), *QUICK, "--engines", str(root)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        *_, last = captured.err.splitlines()
        assert last.startswith("tokenfold bench: ")
        return last.removeprefix("tokenfold bench: ")

    return said


def test_engines_are_built_and_measured(
    exported: Path, root: Path, openings: list[SessionOptions], run: Callable[..., dict[str, Any]]
) -> None:
    found = run(exported, "--r", "2", "--no-memory")
    rows = [(row["batch"], row["level"]) for row in found["rows"]]
    assert rows == [(batch, level) for batch in (1, 2) for level in ("exact", "most", "r=2")]
    assert openings == [SessionOptions("tensorrt", engines=root, static=False)]
    assert found["tensorrt"] == {
        "version": "tensorrt 11.4.0",
        "gpu": TARGET.gpu,
        "plugins": TARGET.plugins,
        "engines": [{"graph": "model.onnx", "precision": "fp16", "bytes": BYTES}],
        "cuda": {},
        "static": {},
        "one": {"count": 1, "mb": BYTES / 1e6},
    }
    assert found["machine"]["versions"] == {"tensorrt": "11.4.0"}
    assert (found["precision"], found["lost"], found["complete"]) == ("fp16", [], True)


def test_onnx_runtime_and_engines_of_one_plan_run_beside(
    exported: Path, root: Path, openings: list[SessionOptions], run: Callable[..., dict[str, Any]]
) -> None:
    out = root.parent / "found.json"
    found = run(exported, "--r", "2", "--beside", "cuda", "--static-levels", "--out", out)
    engine = SessionOptions("tensorrt", engines=root, static=False)
    assert openings == [engine, SessionOptions("cuda"), engine._replace(static=True)]
    own = found["tensorrt"]
    assert [(one.get("level"), one["bytes"]) for one in own["engines"]] == [
        (None, BYTES),
        ("exact", STATIC_BYTES),
        ("most", STATIC_BYTES),
    ]
    for who, levels in (("cuda", ["exact", "most", "r=2"]), ("static", ["exact", "most"])):
        assert list(own[who]) == ["1", "2"]
        for rows in own[who].values():
            assert [row["level"] for row in rows] == levels
            for row in rows:
                assert row["images_per_second"] > 0
                assert 0 < row["low"] <= row["ratio"] <= row["high"]
    assert own["one"] == {"count": 1, "mb": BYTES / 1e6, "loaded_mb": 5.0}
    assert own["each"] == {"count": 2, "mb": 2 * STATIC_BYTES / 1e6, "loaded_mb": 9.0}
    assert [row["level"] for row in found["memory"]] == ["exact", "most", "r=2"]
    assert (found["against"], found["lost"]) == ({}, [])
    assert json.loads(out.read_text()) == found
    kept = GpuReport.model_validate_json(out.read_text())
    assert kept.tensorrt is not None
    assert list(kept.tensorrt.beside()) == ["ONNX Runtime", "engine of one plan"]


def test_engines_that_are_there_are_not_built(
    exported: Path,
    run: Callable[..., dict[str, Any]],
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(exported, "--no-memory")
    monkeypatch.setattr(process, "COMMAND", BROKEN)
    assert run(exported, "--no-memory")["tensorrt"]["one"]["count"] == 1
    assert refusal(exported, "--static-levels").endswith("cannot be built: out of luck")


def test_engines_of_something_else_are_built_anew(
    exported: Path, root: Path, run: Callable[..., dict[str, Any]]
) -> None:
    bundle = Bundle.open(exported)
    (wanted,) = origins(bundle, TARGET)
    there = Engines(root, bundle)
    there.write(wanted.model_copy(update={"sha256": "0" * 64}), b"foreign")
    with pytest.raises(EngineError, match="something else"):
        there.find(wanted)
    assert run(exported, "--no-memory")["tensorrt"]["engines"][0]["bytes"] == BYTES
    assert there.find(wanted).bytes == BYTES


def test_what_is_in_bfloat16_is_measured_so(
    exported: Path, root: Path, run: Callable[..., dict[str, Any]]
) -> None:
    bundle = Bundle.open(exported)
    (wanted,) = origins(bundle, TARGET, precision="bf16")
    Engines(root, bundle).write(wanted, bytes(7))
    found = run(exported, "--static-levels", "--no-memory")["tensorrt"]["engines"]
    assert [one["precision"] for one in found] == ["bf16"] * 3
    assert [one["bytes"] for one in found] == [7, STATIC_BYTES, STATIC_BYTES]


def test_a_network_with_texts_has_two_graphs(
    pairs: Path, run: Callable[..., dict[str, Any]]
) -> None:
    found = run(pairs, "--beside", "cuda", "--static-levels")
    own = found["tensorrt"]
    levels = len(Bundle.open(pairs).manifest.levels)
    assert (own["one"]["count"], own["each"]["count"]) == (2, 1 + levels)
    assert own["each"]["mb"] == (BYTES + levels * STATIC_BYTES) / 1e6
    assert [row["level"] for row in own["static"]["2"]] == ["exact", "most"]
    assert "resident" not in found["rows"][0]
    assert GpuReport.model_validate(found).rows[0].resident is None


def test_another_bundle_has_its_engines_built_too(
    exported: Path, root: Path, run: Callable[..., dict[str, Any]]
) -> None:
    other = export_bundle(
        tiny.checkpoint(), "a test", root.parent / "plain", Recipe(name="plain", method="none")
    )
    found = run(exported, "--compare", other.folder, "--no-memory")
    assert [one["level"] for one in found["against"]["1"]] == ["exact"]
    assert sorted(path.name.partition("-")[0] for path in root.iterdir()) == ["plain", "tiny"]


def test_nothing_is_built_for_a_bundle_that_cannot_be_compared(
    exported: Path, make: Make, root: Path, refusal: Callable[..., str]
) -> None:
    assert "differ in image size" in refusal(exported, "--compare", make("other"))
    assert not root.exists()


def test_what_gives_other_answers_is_not_compared_with(
    exported: Path,
    run: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def on_cpu(bundle: Bundle, opening: SessionOptions) -> Graphs:
        graphs = opened(bundle)
        right = graphs.run

        def wrong(given: Any, plan: Plan) -> Float:
            return right(given, plan) * (-1 if any(plan) else 1)

        if opening.device == "cuda":
            monkeypatch.setattr(graphs, "run", wrong)
        return graphs

    monkeypatch.setattr(gpu_loading, "opened", on_cpu)
    found = run(exported, "--beside", "cuda", "--no-memory")
    assert [one["level"] for one in found["tensorrt"]["cuda"]["1"]] == ["exact"]
    assert found["lost"] == [
        "ONNX Runtime, most: its logits are off by 2.0e+00 of the bundle's norm"
    ]


def test_levels_without_an_engine_of_their_own(
    exported: Path, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "fixed_plans", lambda *_: {(1, 1, 1)})
    found = run(exported, "--static-levels", "--no-memory")
    assert found["tensorrt"]["static"] == {}


def test_a_table_for_people(exported: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--engines", str(root), "--beside", "cuda", "--static-levels")
    assert command.main([str(exported), *QUICK, *more]) == 0
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


def test_what_cannot_be_measured(
    exported: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no level 'turbo'" in refusal(exported, "--levels", "turbo")
    with monkeypatch.context() as patched:
        patched.setattr(process, "COMMAND", BROKEN)
        assert refusal(exported) == "the engines of tiny cannot be built: out of luck"
        patched.setattr(process, "COMMAND", (sys.executable, "-c", "import sys; sys.exit(3)"))
        assert refusal(exported) == "the engines of tiny cannot be built: its builder ended with 3"

    def damaged(*_: object) -> Graphs:
        raise EngineError("x.engine is damaged:\nits sha256 differs")

    with monkeypatch.context() as patched:
        patched.setattr(gpu_loading, "opened", damaged)
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


def test_the_builder_itself_takes_what_it_is_given(
    exported: Path, root: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.missing() is None:
        pytest.skip("there is a GPU")
    monkeypatch.setattr(
        process, "COMMAND", (sys.executable, "-m", "tokenfold.runtime.tensorrt.command")
    )
    bundle = Bundle.open(exported)
    why = [refusal(exported)]
    # One in bfloat16 is there, and those of one plan are not.
    (wanted,) = origins(bundle, TARGET, precision="bf16")
    Engines(root, bundle).write(wanted, bytes(7))
    why.append(refusal(exported, "--static-levels"))
    for one in why:
        assert one.startswith("the engines of tiny cannot be built: ")
        assert "argument" not in one


def test_how_far_a_build_is(make: Make, root: Path) -> None:
    titles: list[tuple[str, int]] = []
    steps: list[int] = []

    def stage(title: str, count: int) -> Callable[[], None]:
        titles.append((title, count))
        return lambda: steps.append(1)

    engines.prepare(Bundle.open(make()), root, static=True, stage=stage)
    # One of all plans, then the others.
    assert titles == [("engines", 100)] * 2
    assert len(steps) == 200


def test_a_build_ends_with_who_asked_for_it(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = standin_builder.command(root, "a.engine", "b.engine", mode="hangs")
    monkeypatch.setattr(process, "COMMAND", tuple(line))
    steps: list[int] = []

    def interrupt(_title: str, _steps: int) -> Callable[[], None]:
        def step() -> None:
            steps.append(1)
            if len(steps) == 25:  # as it hangs
                until((root / standin_builder.CHILD).exists)
                raise KeyboardInterrupt

        return step

    with pytest.raises(KeyboardInterrupt):
        engines.prepare(Bundle.open(make()), root, static=False, stage=interrupt)
    # And with it what it has started.
    for name in (standin_builder.PID, standin_builder.CHILD):
        number = int((root / name).read_text())
        until(lambda number=number: not standin_builder.alive(number))


def test_int8_engines_are_not_built(make: Make, root: Path) -> None:
    bundle = Bundle.open(make())
    bundle.manifest = bundle.manifest.model_copy(update={"precision": "int8"})
    with pytest.raises(EngineError, match="int8 bundle, which is for the CPU"):
        engines.prepare(bundle, root, static=False, stage=lambda *_: lambda: None)
