"""The GPU's memory of a process that runs one plan, where there is no GPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bench.trivial import Make
from tokenfold.bench import device_memory
from tokenfold.bench.device_memory import DevicePeak, device_peak
from tokenfold.bench.memory import MemoryProbeError
from tokenfold.bench.subjects import Graphs, ImageGraphs, Images, opened
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import MemoryInfo
from tokenfold.runtime.pair import Float
from tokenfold.runtime.session import SessionOptions


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that are taken whenever somebody looks; the last one stays."""
    found = [50]

    def memory() -> MemoryInfo:
        return MemoryInfo(1000 - (found.pop(0) if len(found) > 1 else found[0]), 1000)

    monkeypatch.setattr(device, "memory", memory)
    return found


def test_the_watched_process(
    make: Make,
    taken: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[int] = []
    openings: list[SessionOptions] = []
    run = ImageGraphs.run

    def watched(self: ImageGraphs, given: Images, plan: Plan) -> Float:
        ran.append(len(given))
        return run(self, given, plan)

    def on_cpu(bundle: Bundle, opening: SessionOptions) -> Graphs:
        openings.append(opening)
        return opened(bundle)

    monkeypatch.setattr(ImageGraphs, "run", watched)
    monkeypatch.setattr(device_memory, "opened", on_cpu)
    taken[:] = [300, 700, 750]
    arguments = [str(make()), "--plan", "[1, 1]", "--batch", "3"]
    assert device_memory.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == [300, 750]
    assert ran == [3] * device_memory.RUNS
    assert device_memory.main([*arguments, "--backend", "tensorrt", "--engines", "there"]) == 0
    assert openings == [
        SessionOptions("cuda", static=False),
        SessionOptions("tensorrt", engines=Path("there"), static=False),
    ]


def test_what_others_take_does_not_count(
    taken: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_options: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0, stdout="[300, 750]", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert device_peak(tmp_path, (1, 1), batch=3) == DevicePeak(250, 700)
    assert taken == [50]
    assert device_peak(tmp_path, (1, 1), batch=3, backend="tensorrt", engines=Path("there")) == (
        DevicePeak(250, 700)
    )
    assert commands[0][-2:] == ["--backend", "cuda"]
    assert commands[1][-4:] == ["--backend", "tensorrt", "--engines", "there"]


@pytest.mark.usefixtures("taken")
def test_a_failing_probe_says_why(tmp_path: Path) -> None:
    with pytest.raises(MemoryProbeError, match=r"manifest\.json is missing"):
        device_peak(tmp_path, (0, 0), batch=1)
