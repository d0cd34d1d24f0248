"""`tokenfold build`, as a user runs it, for a GPU that is not here."""

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

from tests.native.cuda_host import tensorrt as plugins
from tests.runtime.tensorrt import ahead
from tests.runtime.tensorrt.ahead import GPU, RTX, needs_rtx
from tests.runtime.tensorrt.bundles import bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.tensorrt.builder import Builder
from tokenfold.runtime.tensorrt.command import build as build_engines
from tokenfold.runtime.tensorrt.command import main
from tokenfold.runtime.tensorrt.engines import Engines
from tokenfold.runtime.tensorrt.origin import EngineError
from tokenfold.service.settings import Settings

pytestmark = [needs_rtx, pytest.mark.timeout(600)]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tokenfold", "build", "--tensorrt", RTX, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "TOKENFOLD_TENSORRT_LIBRARY": str(plugins.build()), **more}


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
    """Engines of a pair bundle, built for two kinds of GPU."""
    folder = tmp_path_factory.mktemp("engines")
    made = bundle("vilt", "fp16")
    done = build(made.folder, "--device", f"{GPU},sm120", "--engines", folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{made.folder}: vilt-fp16, for {ahead.rtx().version}"
    rows = [line.split()[:3] for line in lines[1:5]]
    assert rows == [
        [graph, "fp16", gpu] for gpu in (GPU, "sm_120") for graph in ("vision", "joint")
    ]
    assert all("MB  built in" in line for line in lines[1:5])
    assert lines[5] == f"  in {Engines(folder, made).folder}"
    return folder


def files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.engine")}


def test_what_is_there_is_kept(root: Path) -> None:
    before = files(root)
    assert len(before) == 4
    done = build(bundle("vilt", "fp16").folder, "--device", GPU, "--engines", root)
    assert done.stdout.count("was there") == 2
    assert files(root) == before


def test_engines_are_what_is_wanted_of_them(root: Path) -> None:
    made = bundle("vilt", "fp16")
    for graph in ("vision.onnx", "joint.onnx"):
        assert len(Engines(root, made).read(ahead.origin(made, graph))) > 10_000


def test_a_damaged_engine_is_built_anew(root: Path) -> None:
    made = bundle("vilt", "fp16")
    wanted = ahead.origin(made, "vision.onnx", gpu="sm_120")
    path = Engines(root, made).find(wanted).path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = build(made.folder, "--device", "sm_120", "--engines", root)
    assert (done.stdout.count("was there"), done.stdout.count("built in")) == (1, 1)
    assert Engines(root, made).read(wanted)


def test_other_plugins_mean_other_engines(root: Path, tmp_path: Path) -> None:
    made = bundle("vilt", "fp16")
    # As after `make plugins-tensorrt` has made another library.
    other = tmp_path / "libtokenfold_tensorrt.so"
    other.write_bytes(plugins.build().read_bytes() + b"\0")
    before = files(root)
    arguments = (made.folder, "--device", GPU, "--engines", root)
    done = build(*arguments, TOKENFOLD_TENSORRT_LIBRARY=str(other))
    assert done.stdout.count("built in") == 2
    assert set(files(root)) > set(before)
    assert len(files(root)) == len(before) + 2


def test_without_plugins_only_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bundle("vit", "fp16")
    monkeypatch.setenv("TOKENFOLD_TENSORRT_LIBRARY", "none")
    # That bodies can be built is shown elsewhere, and takes long.
    monkeypatch.setattr(Builder, "build", lambda *_, **__: b"an engine")
    given = ["--tensorrt", RTX, "--device", GPU, "--engines", str(tmp_path), str(made.folder)]
    assert main(given) == 2
    assert "the plugins are not built" in capsys.readouterr().err
    assert main(["--no-plugins", *given]) == 0
    assert [path.name for path in files(tmp_path)] == [
        ahead.origin(made, "model.onnx", with_plugins=False).file
    ]


def test_progress_for_programs(tmp_path: Path) -> None:
    done = build(bundle("vit", "fp16").folder, "--device", GPU, "--engines", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(one) == {"engine", "done", "phase"} for one in told)
    shares = [one["done"] for one in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {one["engine"] for one in told} == {"model fp16"}
    assert not done.stderr


def test_an_engine_for_each_level(tmp_path: Path) -> None:
    made = bundle("vit", "fp16")
    arguments = (made.folder, "--device", GPU, "--engines", tmp_path, "--static-levels")
    done = build(*arguments, "--precision", "bf16")
    assert done.returncode == 0, done.stderr
    titles = [line.split("sm_89")[0].split() for line in done.stdout.splitlines()[1:-1]]
    assert titles == [["model", "bf16", *level] for level in ([], ["exact"], ["some"], ["half"])]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "sm90"], "does not build for sm90; it does for sm_75"),
        (["--device", "current"], "cuda-bindings is not installed|no GPU"),
        (["--precision", "bf16", "--device", GPU], "is made of a float16 bundle, and vit-fp32 is"),
        (["--device", GPU, "--engines", "/proc/none"], "/proc/none"),
        (["--device", GPU, "--engines", "/dev/null"], "/dev/null"),
        (["--device", "sm_89,"], "'sm_89,' is not GPUs with commas between"),
        (["--device", GPU, "--engines", ""], "an empty name is no folder"),
        (["--device", GPU, "--engines", "~nobody-of-that-name/x"], "~nobody-of-that-name"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--tensorrt", RTX, *arguments, str(bundle("vit", "fp32").folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENFOLD_TENSORRT_LIBRARY", str(plugins.build()))
        patch.setattr(Builder, "build", None)  # nothing is built before it is told
        try:
            code = main(given)
        except SystemExit as error:
            code = int(str(error.code))
    assert code == 2
    err = capsys.readouterr().err
    line = err.splitlines()[-1]
    assert line.startswith("tokenfold build:")
    assert re.search(said, line)


def test_the_folder_is_that_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bundle("vit", "fp16")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TOKENFOLD_ENGINES", "~/engines")
    done = build(made.folder, "--device", GPU)
    assert done.returncode == 0, done.stderr
    assert Engines(Settings().engines, made).find(ahead.origin(made, "model.onnx"))
    monkeypatch.setenv("TOKENFOLD_ENGINES", "")
    with pytest.raises(ValidationError, match="an empty name is no folder"):
        Settings()


def test_a_bundle_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    made, other = bundle("vit", "fp16"), bundle("pitome", "fp16")
    copy = Bundle.open(Path(shutil.copytree(made.folder, tmp_path / "bundle")))
    wanted = [ahead.origin(copy, "model.onnx")]

    def replace(_: str, done: float, __: str) -> None:
        if done == 0:
            shutil.copy(other.folder / "model.onnx", copy.folder / "model.onnx")

    root = tmp_path / "engines"
    with pytest.raises(EngineError, match="was replaced while its engines were built"):
        build_engines(copy, root, ahead.rtx(), ahead.registered(), wanted, tell=replace)
    assert not files(root)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timings_are_kept_for_the_next_build(tmp_path: Path) -> None:
    """TensorRT for RTX has none, but takes and gives a file of them."""
    made = bundle("vit", "fp16")
    timings = tmp_path / "some.timings"
    for _ in range(2):
        origin = ahead.origin(made, "model.onnx")
        assert ahead.builder().build(made.folder / "model.onnx", origin, timings=timings)
        assert timings.stat().st_size
    timings.write_bytes(b"nothing of the kind")
    assert ahead.builder().build(made.folder / "model.onnx", origin, timings=timings)


@pytest.mark.parametrize("when", ["Starting", "Building engine"])
def test_ctrl_c_ends_a_build(tmp_path: Path, when: str) -> None:
    made = bundle("vilt", "fp16")
    line = command(made.folder, "--device", GPU, "--engines", tmp_path, "--json")
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for told in process.stdout:
            found = json.loads(told)
            if found["engine"].startswith("joint") and found["phase"] == when:
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert said == "tokenfold build: interrupted; what was built is kept\n"
    assert [path.name for path in files(tmp_path)] == [ahead.origin(made, "vision.onnx").file]


def test_a_reader_that_goes_ends_a_build(tmp_path: Path) -> None:
    """As a server that is killed: nothing is built for nobody."""
    made = bundle("vit", "fp16")
    line = command(made.folder, "--device", GPU, "--engines", tmp_path, "--json")
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode != 0
    assert "Traceback" not in said
    assert not files(tmp_path)


def test_int8_is_for_the_cpu_and_no_bundle_is_none(tmp_path: Path) -> None:
    done = build(bundle("vit", "int8").folder, "--device", GPU)
    assert (done.returncode, done.stdout) == (2, "")
    assert "int8 bundle, which is for the CPU" in done.stderr
    done = build(tmp_path / "nowhere", "--device", GPU)
    assert done.returncode == 2
    assert "manifest.json is missing" in done.stderr


def test_a_killed_build_leaves_nothing_half(tmp_path: Path) -> None:
    made = bundle("vilt", "fp16")
    line = command(made.folder, "--device", GPU, "--engines", tmp_path, "--json")
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        for told in process.stdout:
            if json.loads(told)["engine"].startswith("joint"):
                break
        process.send_signal(signal.SIGKILL)
    engines = Engines(tmp_path, made)
    assert engines.read(ahead.origin(made, "vision.onnx"))
    assert [path.name for path in files(tmp_path)] == [ahead.origin(made, "vision.onnx").file]
    done = build(made.folder, "--device", GPU, "--engines", tmp_path)
    assert (done.stdout.count("was there"), done.stdout.count("built in")) == (1, 1)
