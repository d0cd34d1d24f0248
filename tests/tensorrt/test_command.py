"""`tokenfold build`, as a user runs it, for a GPU that is not here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export.tensorrt.engines import Engines
from tests.cuda_host import tensorrt as plugins
from tests.tensorrt import ahead
from tests.tensorrt.ahead import GPU, RTX, needs_rtx
from tests.tensorrt.bundles import bundle

pytestmark = [needs_rtx, pytest.mark.timeout(600)]


def build(*arguments: object, with_plugins: bool = True) -> subprocess.CompletedProcess[str]:
    library = str(plugins.build()) if with_plugins else "none"
    command = [sys.executable, "-m", "tokenfold", "build", "--tensorrt", RTX, *map(str, arguments)]
    return subprocess.run(
        command,
        env={**os.environ, "TOKENFOLD_TENSORRT_LIBRARY": library},
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
    copy = tmp_path / "engines"
    folder = Engines(root, bundle("vilt", "fp16")).folder
    target = Engines(copy, bundle("vilt", "fp16")).folder
    target.mkdir(parents=True)
    for path in folder.iterdir():
        (target / path.name).hardlink_to(path)
    arguments = (bundle("vilt", "fp16").folder, "--device", GPU, "--engines", copy)
    # As after `make plugins-tensorrt` has made another library.
    done = build(*arguments, with_plugins=False)
    assert "the plugins are not built (make plugins-tensorrt)" in done.stderr
    assert done.stdout.count("built in") == 2
    assert len(files(copy)) == 6


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
    ],
)
def test_what_cannot_be_built_is_one_line(arguments: list[str], said: str) -> None:
    done = build(bundle("vit", "fp32").folder, *arguments)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("tokenfold build:")]
    assert re.search(said, line)
    assert "Traceback" not in done.stderr


def test_int8_is_for_the_cpu_and_no_bundle_is_none(tmp_path: Path) -> None:
    done = build(bundle("vit", "int8").folder, "--device", GPU)
    assert (done.returncode, done.stdout) == (2, "")
    assert "int8 bundle, which is for the CPU" in done.stderr
    done = build(tmp_path / "nowhere", "--device", GPU)
    assert done.returncode == 2
    assert "manifest.json is missing" in done.stderr


def test_a_killed_build_leaves_nothing_half(tmp_path: Path) -> None:
    made = bundle("vilt", "fp16")
    command = [sys.executable, "-m", "tokenfold", "build", "--tensorrt", RTX, str(made.folder)]
    command += ["--device", GPU, "--engines", str(tmp_path), "--json"]
    environment = {**os.environ, "TOKENFOLD_TENSORRT_LIBRARY": str(plugins.build())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["engine"].startswith("joint"):
                break
        process.send_signal(signal.SIGKILL)
    engines = Engines(tmp_path, made)
    assert engines.read(ahead.origin(made, "vision.onnx"))
    assert [path.name for path in files(tmp_path)] == [ahead.origin(made, "vision.onnx").file]
    done = build(made.folder, "--device", GPU, "--engines", tmp_path)
    assert (done.stdout.count("was there"), done.stdout.count("built in")) == (1, 1)
