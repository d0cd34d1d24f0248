"""Tests of `tokenfold.runtime.machine`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenfold.runtime import machine

QUOTAS = pytest.mark.parametrize(
    ("quota", "expected"), [(None, 8), (150_000, 2), (50_000, 1), (9_900_000, 8)]
)


@pytest.fixture(autouse=True)
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of control groups, on a machine with eight cores."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


@QUOTAS
def test_cores_honour_the_quota_of_cgroups_2(
    quota: int | None, expected: int, cgroups: Path
) -> None:
    (cgroups / "cpu.max").write_text(f"{'max' if quota is None else quota} 100000\n")
    assert machine.cores() == expected


@QUOTAS
def test_cores_honour_the_quota_of_cgroups_1(
    quota: int | None, expected: int, cgroups: Path
) -> None:
    (cgroups / "cpu").mkdir()
    (cgroups / "cpu" / "cpu.cfs_quota_us").write_text(f"{-1 if quota is None else quota}\n")
    (cgroups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cores() == expected


def test_cores_without_cgroups_are_those_of_the_affinity() -> None:
    assert machine.cores() == 8
