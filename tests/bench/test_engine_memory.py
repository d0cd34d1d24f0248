"""Probe of the GPU memory of loaded engines, on a machine without a GPU and TensorRT."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench.fake_builder import TARGET
from tests.bench.trivial import Make
from tokenfold.bench import engine_memory
from tokenfold.bench.memory import MemoryProbeError
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import MemoryInfo
from tokenfold.runtime.tensorrt import plugins, target, variant
from tokenfold.runtime.tensorrt.spec import EngineSpec, engine_specs
from tokenfold.runtime.tensorrt.store import EngineStore

TOTAL = 1000


@pytest.fixture
def used_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of GPU memory in use at each query, in a list of one value."""
    used = [50]
    monkeypatch.setattr(device, "memory", lambda: MemoryInfo(TOTAL - used[0], TOTAL))
    return used


@pytest.fixture
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that TensorRT is installed."""
    monkeypatch.setattr(variant, "load", lambda: None)
    monkeypatch.setattr(plugins, "register", lambda _: None)
    monkeypatch.setattr(target, "current_target", lambda *_: TARGET)


@pytest.mark.usefixtures("fake_tensorrt")
def test_the_probe_process(
    make: Make,
    tmp_path: Path,
    used_bytes: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = Bundle.open(make())
    for spec in engine_specs(bundle, TARGET, static=True):
        EngineStore(tmp_path, bundle).write(spec, bytes(10))
    loaded: list[Plan | None] = []
    freed: list[str] = []

    def engine(_tensorrt: object, _plugins: object, spec: EngineSpec, content: bytes) -> int:
        loaded.append(spec.plan)
        used_bytes[0] += len(content)
        return len(content)

    class Runner:
        def __init__(self, engines: list[int], _stream: object) -> None:
            used_bytes[0] += max(engines)

        def free(self) -> None:
            freed.append("runner")

    stream = SimpleNamespace(free=lambda: freed.append("stream"))
    for name, replacement in (
        ("Engine", engine),
        ("EngineRunner", Runner),
        ("Stream", lambda: stream),
    ):
        monkeypatch.setattr(engine_memory, name, replacement)
    arguments = [str(bundle.folder), "--engines", str(tmp_path)]
    assert engine_memory.main(arguments) == 0
    assert loaded == [None]
    assert json.loads(capsys.readouterr().out) == 50 + 10 + 10
    assert freed == ["runner", "stream"]
    loaded.clear()
    used_bytes[0] = 50
    assert engine_memory.main([*arguments, "--static-levels"]) == 0
    # One engine per plan replaces the engine for all plans; the runners share working memory.
    assert loaded == [(0, 0), (1, 1), (2, 1)]
    assert json.loads(capsys.readouterr().out) == 50 + 3 * 10 + 10


def test_memory_of_other_processes_is_subtracted(
    used_bytes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Any] = []

    def run(command: list[str], **_options: object) -> SimpleNamespace:
        commands.append(command[3:])
        return SimpleNamespace(returncode=0, stdout="700", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    used_bytes[0] = 60
    for static in (False, True):
        assert engine_memory.loaded_bytes(tmp_path, Path("there"), static=static) == 640
    assert commands == [
        [str(tmp_path), "--engines", "there"],
        [str(tmp_path), "--engines", "there", "--static-levels"],
    ]


@pytest.mark.usefixtures("used_bytes")
def test_a_failed_probe_reports_the_reason(tmp_path: Path) -> None:
    with pytest.raises(MemoryProbeError, match=r"manifest\.json is missing"):
        engine_memory.loaded_bytes(tmp_path, tmp_path, static=False)
