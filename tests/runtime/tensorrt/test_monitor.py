"""Tests of the progress that is computed from a build's phases."""

from __future__ import annotations

from tokenfold.runtime.tensorrt.monitor import Phases


def reported(calls: list[tuple[object, ...]]) -> list[tuple[float, str]]:
    """Return the progress that calls of `Phases` report."""
    reports: list[tuple[float, str]] = []
    phases = Phases(lambda done, phase: reports.append((round(done, 4), phase)))
    for name, *arguments in calls:
        getattr(phases, str(name))(*arguments)
    return reports


def test_a_nested_phase_is_a_part_of_its_parents_step() -> None:
    assert reported(
        [
            ("start", "build", None, 4),
            ("step", "build", 0),
            ("start", "tactics", "build", 10),
            ("step", "tactics", 4),
            ("start", "one", "tactics", 2),
            ("step", "one", 0),
            ("finish", "one"),
            ("finish", "tactics"),
            ("step", "build", 1),
        ]
    ) == [
        *((0.0, "build"), (0.25, "build"), (0.25, "tactics"), (0.375, "tactics")),
        *((0.375, "one"), (0.3875, "one"), (0.5, "build")),
    ]


def test_progress_never_decreases_or_exceeds_one() -> None:
    reports = reported(
        [
            ("start", "build", None, 2),
            ("step", "build", 1),
            ("start", "more", "build", 3),
            ("step", "more", 0),
            ("step", "build", 5),
        ]
    )
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert reports[-1][0] == 1.0


def test_inconsistent_phases() -> None:
    assert reported([("step", "unknown", 1), ("finish", "unknown")]) == []
    assert reported([("start", "none", None, 0)]) == [(0.0, "none")]
    assert reported([("start", "itself", "itself", 2), ("step", "itself", 0)])[-1][0] <= 1.0
    assert reported([("start", "orphan", "gone", 2), ("step", "orphan", 0)])[-1] == (0.5, "orphan")
