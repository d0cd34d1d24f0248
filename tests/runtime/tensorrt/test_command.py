"""Tests of `tokenfold build`, as a user runs it, for a GPU that is not present."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.native.cuda_host import tensorrt as cuda_host_plugins
from tests.runtime.tensorrt import aot
from tests.runtime.tensorrt.aot import GPU, RTX, needs_rtx
from tests.runtime.tensorrt.bundles import bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.tensorrt.builder import Builder
from tokenfold.runtime.tensorrt.command import build as build_engines
from tokenfold.runtime.tensorrt.command import main
from tokenfold.runtime.tensorrt.spec import EngineError
from tokenfold.runtime.tensorrt.store import EngineStore
from tokenfold.service.settings import Settings

pytestmark = [needs_rtx, pytest.mark.timeout(600)]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tokenfold", "build", "--tensorrt", RTX, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "TOKENFOLD_TENSORRT_LIBRARY": str(cuda_host_plugins.build()), **more}


def build(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the engines of a pair bundle for two architectures, and return their folder."""
    folder = tmp_path_factory.mktemp("engines")
    made = bundle("vilt", "fp16")
    done = build(made.folder, "--device", f"{GPU},sm120", "--engines", folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{made.folder}: vilt-fp16, for {aot.rtx().version}"
    rows = [line.split()[:3] for line in lines[1:5]]
    assert rows == [
        [graph, "fp16", gpu] for gpu in (GPU, "sm_120") for graph in ("vision", "joint")
    ]
    assert all("MB  built in" in line for line in lines[1:5])
    assert lines[5] == f"  in {EngineStore(folder, made).folder}"
    return folder


def engine_files(root: Path) -> dict[Path, int]:
    """Return all engine files with their modification times."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.engine")}


def test_existing_engines_are_kept(root: Path) -> None:
    before = engine_files(root)
    assert len(before) == 4
    done = build(bundle("vilt", "fp16").folder, "--device", GPU, "--engines", root)
    assert done.stdout.count("already built") == 2
    assert engine_files(root) == before


def test_engines_match_their_specification(root: Path) -> None:
    made = bundle("vilt", "fp16")
    for graph in ("vision.onnx", "joint.onnx"):
        assert len(EngineStore(root, made).read(aot.engine_spec(made, graph))) > 10_000


def test_a_damaged_engine_is_built_again(root: Path) -> None:
    made = bundle("vilt", "fp16")
    spec = aot.engine_spec(made, "vision.onnx", gpu="sm_120")
    path = EngineStore(root, made).find(spec).path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = build(made.folder, "--device", "sm_120", "--engines", root)
    assert (done.stdout.count("already built"), done.stdout.count("built in")) == (1, 1)
    assert EngineStore(root, made).read(spec)


def test_another_plugin_library_needs_other_engines(root: Path, tmp_path: Path) -> None:
    made = bundle("vilt", "fp16")
    # Another build of the library, as after `make plugins-tensorrt`.
    other = tmp_path / "libtokenfold_tensorrt.so"
    other.write_bytes(cuda_host_plugins.build().read_bytes() + b"\0")
    before = engine_files(root)
    arguments = (made.folder, "--device", GPU, "--engines", root)
    done = build(*arguments, TOKENFOLD_TENSORRT_LIBRARY=str(other))
    assert done.stdout.count("built in") == 2
    assert set(engine_files(root)) > set(before)
    assert len(engine_files(root)) == len(before) + 2


def test_building_without_plugins_needs_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bundle("vit", "fp16")
    monkeypatch.setenv("TOKENFOLD_TENSORRT_LIBRARY", "none")
    # Building portable bodies takes long, and is tested in test_aot.py.
    monkeypatch.setattr(Builder, "build", lambda *_, **__: b"an engine")
    arguments = ["--tensorrt", RTX, "--device", GPU, "--engines", str(tmp_path), str(made.folder)]
    assert main(arguments) == 2
    assert "the plugins are not built" in capsys.readouterr().err
    assert main(["--no-plugins", *arguments]) == 0
    assert [path.name for path in engine_files(tmp_path)] == [
        aot.engine_spec(made, "model.onnx", with_plugins=False).file
    ]


def test_progress_as_json(tmp_path: Path) -> None:
    done = build(bundle("vit", "fp16").folder, "--device", GPU, "--engines", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(report) == {"engine", "done", "phase"} for report in reports)
    shares = [report["done"] for report in reports]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {report["engine"] for report in reports} == {"model fp16"}
    assert not done.stderr


def test_static_levels_build_one_engine_per_level(tmp_path: Path) -> None:
    made = bundle("vit", "fp16")
    arguments = (made.folder, "--device", GPU, "--engines", tmp_path, "--static-levels")
    done = build(*arguments, "--precision", "bf16")
    assert done.returncode == 0, done.stderr
    titles = [line.split("sm_89")[0].split() for line in done.stdout.splitlines()[1:-1]]
    assert titles == [["model", "bf16", *level] for level in ([], ["exact"], ["some"], ["half"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "sm90"], "does not build for sm90; supported: sm_75"),
        (["--device", "current"], "cuda-bindings is not installed|no GPU"),
        (
            ["--precision", "bf16", "--device", GPU],
            "bf16 engines need an fp16 bundle, and vit-fp32 is",
        ),
        (["--device", GPU, "--engines", "/proc/none"], "/proc/none"),
        (["--device", GPU, "--engines", "/dev/null"], "/dev/null"),
        (["--device", "sm_89,"], "'sm_89,' is not a comma-separated list of GPUs"),
        (["--device", GPU, "--engines", ""], "the folder name is empty"),
        (["--device", GPU, "--engines", "~nobody-of-that-name/x"], "~nobody-of-that-name"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command_arguments = ["--tensorrt", RTX, *arguments, str(bundle("vit", "fp32").folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENFOLD_TENSORRT_LIBRARY", str(cuda_host_plugins.build()))
        patch.setattr(Builder, "build", None)  # The error must come before any build.
        try:
            code = main(command_arguments)
        except SystemExit as error:
            code = int(str(error.code))
    assert code == 2
    err = capsys.readouterr().err
    line = err.splitlines()[-1]
    assert line.startswith("tokenfold build:")
    assert re.search(message, line)


def test_the_service_uses_the_same_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundle("vit", "fp16")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TOKENFOLD_ENGINES", "~/engines")
    done = build(made.folder, "--device", GPU)
    assert done.returncode == 0, done.stderr
    assert EngineStore(Settings().engines, made).find(aot.engine_spec(made, "model.onnx"))
    monkeypatch.setenv("TOKENFOLD_ENGINES", "")
    with pytest.raises(ValidationError, match="must not be empty"):
        Settings()


def test_a_bundle_replaced_during_the_build(tmp_path: Path) -> None:
    made, other = bundle("vit", "fp16"), bundle("pitome", "fp16")
    copy = Bundle.open(Path(shutil.copytree(made.folder, tmp_path / "bundle")))
    specs = [aot.engine_spec(copy, "model.onnx")]

    def replace(_: str, done: float, __: str) -> None:
        if done == 0:
            shutil.copy(other.folder / "model.onnx", copy.folder / "model.onnx")

    root = tmp_path / "engines"
    with pytest.raises(EngineError, match="was replaced while its engines were built"):
        build_engines(copy, root, aot.rtx(), aot.plugin_library(), specs, progress=replace)
    assert not engine_files(root)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_timing_cache_is_kept_for_the_next_build(tmp_path: Path) -> None:
    """TensorRT for RTX times no kernels, but reads and writes a cache file."""
    made = bundle("vit", "fp16")
    timing_cache = tmp_path / "some.timings"
    for _ in range(2):
        spec = aot.engine_spec(made, "model.onnx")
        assert aot.builder().build(made.folder / "model.onnx", spec, timing_cache=timing_cache)
        assert timing_cache.stat().st_size
    timing_cache.write_bytes(b"nothing of the kind")
    assert aot.builder().build(made.folder / "model.onnx", spec, timing_cache=timing_cache)


@pytest.mark.parametrize("when", ["Starting", "Building engine"])
def test_ctrl_c_stops_the_build(tmp_path: Path, when: str) -> None:
    made = bundle("vilt", "fp16")
    command_line = command(made.folder, "--device", GPU, "--engines", tmp_path, "--json")
    with subprocess.Popen(
        command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            report = json.loads(line)
            if report["engine"].startswith("joint") and report["phase"] == when:
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        stderr = process.stderr.read()
    assert process.returncode == 130, stderr
    assert stderr == "tokenfold build: interrupted; finished engines are kept\n"
    assert [path.name for path in engine_files(tmp_path)] == [
        aot.engine_spec(made, "vision.onnx").file
    ]


def test_a_closed_stdout_ends_the_build(tmp_path: Path) -> None:
    """When a server is killed, the build that it started must end."""
    made = bundle("vit", "fp16")
    command_line = command(made.folder, "--device", GPU, "--engines", tmp_path, "--json")
    with subprocess.Popen(
        command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.returncode != 0
    assert "Traceback" not in stderr
    assert not engine_files(tmp_path)


def test_int8_and_missing_bundles_are_errors(tmp_path: Path) -> None:
    done = build(bundle("vit", "int8").folder, "--device", GPU)
    assert (done.returncode, done.stdout) == (2, "")
    assert "int8 bundle, which is for the CPU" in done.stderr
    done = build(tmp_path / "nowhere", "--device", GPU)
    assert done.returncode == 2
    assert "manifest.json is missing" in done.stderr


def test_a_killed_build_leaves_no_partial_engine(tmp_path: Path) -> None:
    made = bundle("vilt", "fp16")
    command_line = command(made.folder, "--device", GPU, "--engines", tmp_path, "--json")
    with subprocess.Popen(
        command_line, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["engine"].startswith("joint"):
                break
        process.send_signal(signal.SIGKILL)
    engines = EngineStore(tmp_path, made)
    assert engines.read(aot.engine_spec(made, "vision.onnx"))
    assert [path.name for path in engine_files(tmp_path)] == [
        aot.engine_spec(made, "vision.onnx").file
    ]
    done = build(made.folder, "--device", GPU, "--engines", tmp_path)
    assert (done.stdout.count("already built"), done.stdout.count("built in")) == (1, 1)
