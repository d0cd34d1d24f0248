"""How far a build is, from its phases."""

from __future__ import annotations

from tokenfold.runtime.tensorrt.monitor import Phases


def told(steps: list[tuple[object, ...]]) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    phases = Phases(lambda done, phase: found.append((round(done, 4), phase)))
    for name, *arguments in steps:
        getattr(phases, str(name))(*arguments)
    return found


def test_a_phase_within_a_phase_is_a_part_of_its_step() -> None:
    assert told(
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


def test_it_never_goes_back_nor_beyond() -> None:
    found = told(
        [
            ("start", "build", None, 2),
            ("step", "build", 1),
            ("start", "more", "build", 3),
            ("step", "more", 0),
            ("step", "build", 5),
        ]
    )
    assert [done for done, _ in found] == sorted(done for done, _ in found)
    assert found[-1][0] == 1.0


def test_phases_that_make_no_sense_are_no_harm() -> None:
    assert told([("step", "unknown", 1), ("finish", "unknown")]) == []
    assert told([("start", "none", None, 0)]) == [(0.0, "none")]
    assert told([("start", "itself", "itself", 2), ("step", "itself", 0)])[-1][0] <= 1.0
    assert told([("start", "orphan", "gone", 2), ("step", "orphan", 0)])[-1] == (0.5, "orphan")
