"""Probe of the peak memory of one plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.trivial import Make
from tokenfold.bench import memory
from tokenfold.bench.memory import MemoryProbeError, measure_peak

MB_PER_TOKEN = 4.0


def test_memory_grows_with_the_plan_and_its_callers(make: Make) -> None:
    folder = make()
    little = measure_peak(folder, (0, 0), batch=1, callers=1)
    much = measure_peak(folder, (8, 8), batch=1, callers=1)
    three_callers = measure_peak(folder, (8, 8), batch=1, callers=3)
    per_caller = 16 * MB_PER_TOKEN
    assert little.total + per_caller * 0.9 < much.total < little.total + per_caller * 3
    assert much.total + per_caller * 0.9 < three_callers.total
    for measured in (little, much, three_callers):
        assert 0 <= measured.working < measured.total
        assert measured.running_only
    # Working memory excludes the interpreter and the libraries.
    assert per_caller * 0.9 < much.working < per_caller * 3
    assert little.working < per_caller


def test_a_failed_probe_reports_the_reason(tmp_path: Path) -> None:
    with pytest.raises(MemoryProbeError, match=r"manifest\.json is missing"):
        measure_peak(tmp_path, (0, 0), batch=1, callers=1)


def test_a_peak_that_cannot_be_reset_is_marked(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder cannot be written like a file.
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path)
    assert memory.main([str(make()), "--plan", "[0, 0]"]) == 0
    total, working, running_only = json.loads(capsys.readouterr().out)
    assert not running_only
    assert 0 <= working < total
