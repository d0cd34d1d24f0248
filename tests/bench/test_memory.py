"""The memory of a process that runs one plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.trivial import Make
from tokenfold.bench import memory
from tokenfold.bench.memory import MemoryProbeError, measure_peak

MB_PER_TOKEN = 4.0


def test_memory_is_of_one_plan_and_of_all_its_callers(make: Make) -> None:
    folder = make()
    little = measure_peak(folder, (0, 0), batch=1, callers=1)
    much = measure_peak(folder, (8, 8), batch=1, callers=1)
    at_once = measure_peak(folder, (8, 8), batch=1, callers=3)
    one = 16 * MB_PER_TOKEN
    assert little.total + one * 0.9 < much.total < little.total + one * 3
    assert much.total + one * 0.9 < at_once.total
    for found in (little, much, at_once):
        assert 0 <= found.working < found.total
        assert found.running_only
    # What the interpreter and the libraries hold is not in it.
    assert one * 0.9 < much.working < one * 3
    assert little.working < one


def test_a_failing_memory_probe_says_why(tmp_path: Path) -> None:
    with pytest.raises(MemoryProbeError, match=r"manifest\.json is missing"):
        measure_peak(tmp_path, (0, 0), batch=1, callers=1)


def test_where_the_peak_cannot_start_anew(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path)  # a folder: nobody can write it as a file
    assert memory.main([str(make()), "--plan", "[0, 0]"]) == 0
    total, working, running_only = json.loads(capsys.readouterr().out)
    assert not running_only
    assert 0 <= working < total
