"""The GPU's memory of a process that has engines loaded, where there is neither of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench.standing_in import TARGET
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

ROOM = 1000


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that are taken whenever somebody looks."""
    found = [50]
    monkeypatch.setattr(device, "memory", lambda: MemoryInfo(ROOM - found[0], ROOM))
    return found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a TensorRT be here."""
    monkeypatch.setattr(variant, "load", lambda: None)
    monkeypatch.setattr(plugins, "register", lambda _: None)
    monkeypatch.setattr(target, "current_target", lambda *_: TARGET)


@pytest.mark.usefixtures("here")
def test_the_watched_process(
    make: Make,
    tmp_path: Path,
    taken: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = Bundle.open(make())
    for origin in engine_specs(bundle, TARGET, static=True):
        EngineStore(tmp_path, bundle).write(origin, bytes(10))
    loaded: list[Plan | None] = []
    freed: list[str] = []

    def engine(_own: object, _plugins: object, origin: EngineSpec, content: bytes) -> int:
        loaded.append(origin.plan)
        taken[0] += len(content)
        return len(content)

    class Runner:
        def __init__(self, engines: list[int], _stream: object) -> None:
            taken[0] += max(engines)

        def free(self) -> None:
            freed.append("runner")

    stream = SimpleNamespace(free=lambda: freed.append("stream"))
    for name, stands_in in (
        ("Engine", engine),
        ("EngineRunner", Runner),
        ("Stream", lambda: stream),
    ):
        monkeypatch.setattr(engine_memory, name, stands_in)
    arguments = [str(bundle.folder), "--engines", str(tmp_path)]
    assert engine_memory.main(arguments) == 0
    assert loaded == [None]
    assert json.loads(capsys.readouterr().out) == 50 + 10 + 10
    assert freed == ["runner", "stream"]
    loaded.clear()
    taken[0] = 50
    assert engine_memory.main([*arguments, "--static-levels"]) == 0
    # In the place of that of all plans; and in a memory that is one's as well as the other's.
    assert loaded == [(0, 0), (1, 1), (2, 1)]
    assert json.loads(capsys.readouterr().out) == 50 + 3 * 10 + 10


def test_what_others_take_does_not_count(
    taken: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Any] = []

    def run(command: list[str], **_options: object) -> SimpleNamespace:
        commands.append(command[3:])
        return SimpleNamespace(returncode=0, stdout="700", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    taken[0] = 60
    for static in (False, True):
        assert engine_memory.loaded(tmp_path, Path("there"), static=static) == 640
    assert commands == [
        [str(tmp_path), "--engines", "there"],
        [str(tmp_path), "--engines", "there", "--static-levels"],
    ]


@pytest.mark.usefixtures("taken")
def test_a_failing_probe_says_why(tmp_path: Path) -> None:
    with pytest.raises(MemoryProbeError, match=r"manifest\.json is missing"):
        engine_memory.loaded(tmp_path, tmp_path, static=False)
