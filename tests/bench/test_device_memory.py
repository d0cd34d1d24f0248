"""Probe of the GPU memory of one plan, on a machine without a GPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bench.trivial import Make
from tokenfold.bench import device_memory
from tokenfold.bench.device_memory import DevicePeak, measure_device_peak
from tokenfold.bench.memory import MemoryProbeError
from tokenfold.bench.subjects import Graphs, ImageGraphs, Images, open_graphs
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import MemoryInfo
from tokenfold.runtime.pair import Float
from tokenfold.runtime.session import SessionOptions


@pytest.fixture
def used_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of GPU memory in use at each query; the last value repeats."""
    values = [50]

    def memory() -> MemoryInfo:
        return MemoryInfo(1000 - (values.pop(0) if len(values) > 1 else values[0]), 1000)

    monkeypatch.setattr(device, "memory", memory)
    return values


def test_the_probe_process(
    make: Make,
    used_bytes: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch_sizes: list[int] = []
    openings: list[SessionOptions] = []
    run = ImageGraphs.run

    def watched(self: ImageGraphs, images: Images, plan: Plan) -> Float:
        batch_sizes.append(len(images))
        return run(self, images, plan)

    def on_cpu(bundle: Bundle, opening: SessionOptions) -> Graphs:
        openings.append(opening)
        return open_graphs(bundle)

    monkeypatch.setattr(ImageGraphs, "run", watched)
    monkeypatch.setattr(device_memory, "open_graphs", on_cpu)
    used_bytes[:] = [300, 700, 750]
    arguments = [str(make()), "--plan", "[1, 1]", "--batch", "3"]
    assert device_memory.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == [300, 750]
    assert batch_sizes == [3] * device_memory.RUNS
    assert device_memory.main([*arguments, "--backend", "tensorrt", "--engines", "there"]) == 0
    assert openings == [
        SessionOptions("cuda", static=False),
        SessionOptions("tensorrt", engines=Path("there"), static=False),
    ]


def test_memory_of_other_processes_is_subtracted(
    used_bytes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_options: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0, stdout="[300, 750]", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert measure_device_peak(tmp_path, (1, 1), batch=3) == DevicePeak(250, 700)
    assert used_bytes == [50]
    assert measure_device_peak(
        tmp_path, (1, 1), batch=3, backend="tensorrt", engines=Path("there")
    ) == (DevicePeak(250, 700))
    assert commands[0][-2:] == ["--backend", "cuda"]
    assert commands[1][-4:] == ["--backend", "tensorrt", "--engines", "there"]


@pytest.mark.usefixtures("used_bytes")
def test_a_failed_probe_reports_the_reason(tmp_path: Path) -> None:
    with pytest.raises(MemoryProbeError, match=r"manifest\.json is missing"):
        measure_device_peak(tmp_path, (0, 0), batch=1)
