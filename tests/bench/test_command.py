"""`tokenfold bench` on small graphs: measurements, output, profiles and errors, but no speeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.bench.trivial import QUICK, Make, level
from tokenfold.bench import command, on_cpu
from tokenfold.bench.memory import Peak
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import MODEL
from tokenfold.bundle.profile import LevelProfile, Profile, Quality
from tokenfold.bundle.writing import write_profile

ROW = [
    "level",
    "reduction",
    "flops_ratio",
    "images_per_second",
    "speedup",
    "efficiency",
    "p50_ms",
    "p99_ms",
    "peak_memory_mb",
]


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert command.main([*map(str, arguments), *QUICK, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return the single error line of a bench that is refused."""
    assert command.main([*map(str, arguments), *QUICK, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    # A checkout without a compiler has no native ops, and prints a notice about it first.
    lines = [line for line in captured.err.splitlines() if "make plugins" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("tokenfold bench: ")
    return lines[0]


def test_json_report_has_the_documented_fields(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_json(capsys, make(), "--r", "1")
    rows = report["levels"]
    assert [row["level"] for row in rows] == ["exact", "half", "most", "r=1"]
    for row in rows:
        assert list(row) == ROW
        assert row["images_per_second"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["efficiency"] == pytest.approx(row["speedup"] * row["flops_ratio"])
        assert row["peak_memory_mb"] > 10
    assert [row["reduction"] for row in rows[:3]] == [0.0, 0.3, 0.5]
    assert rows[3]["reduction"] == pytest.approx(1 - rows[3]["flops_ratio"])
    assert (rows[0]["speedup"], rows[0]["flops_ratio"]) == (1.0, 1.0)
    assert report["threads"] == len(os.sched_getaffinity(0))
    assert "onnxruntime" in report["runtime"]
    fields = ["level", "working_memory_mb", "peak_ratio", "working_ratio"]
    assert [list(entry) for entry in report["memory"]] == [fields] * 4
    for entry, row in zip(report["memory"], rows, strict=True):
        assert entry["level"] == row["level"]
        assert 0 <= entry["working_memory_mb"] < row["peak_memory_mb"]
    assert "torch" not in report
    assert "compare" not in report


@pytest.mark.usefixtures("no_probe")
def test_default_output_is_a_table(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(make()), *QUICK]) == 0
    shown = capsys.readouterr().out
    for text in (
        "exact",
        "half",
        "most",
        "images/s",
        "efficiency",
        "work",
        "tiny, fp32",
        "2 rounds",
    ):
        assert text in shown


@pytest.mark.usefixtures("no_probe")
def test_the_tables_fit_a_terminal_of_80_columns(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "FILE_COLUMNS", 80)
    levels = {"exact": level("tome", (0, 0), 0.0), "balanced": level("tome", (1, 1), 0.3)}
    assert command.main([str(make(levels=levels)), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "quartiles" in shown


def test_a_peak_that_includes_loading_gives_one_notice(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_cpu, "measure_peak", lambda *_args, **_options: Peak(100.0, 40.0, False))
    assert command.main([str(make()), *QUICK, "--json"]) == 0
    assert capsys.readouterr().err.count("clear_refs cannot be written") == 1


@pytest.mark.usefixtures("no_probe")
def test_notices_and_progress_stay_off_stdout(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: 75.0)
    monkeypatch.setenv("TOKENFOLD_ORT_LIBRARY", "none")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    assert command.main([str(make()), *QUICK, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["runtime"].endswith("portable ops")
    for text in ("75 % of the processor", "portable ops run", "speed", "memory"):
        assert text in captured.err


@pytest.mark.usefixtures("no_probe")
def test_save_keeps_the_quality(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make()
    quality = Quality(metric="top1", value=0.8, low=0.7, high=0.9, samples=50)
    old = LevelProfile(quality={"classify": quality}, images_per_second=1e9, peak_memory_mb=1.0)
    write_profile(
        folder,
        Profile(measured=date(2000, 1, 1), machine="old", runtime="old", levels={"half": old}),
    )
    rows = {row["level"]: row for row in run_json(capsys, folder, "--save", "--r", "1")["levels"]}
    # Opening the bundle also verifies the checksums.
    profile = Bundle.open(folder).profile
    assert profile is not None
    assert list(profile.levels) == ["exact", "half", "most"]
    assert profile.levels["half"].quality == {"classify": quality}
    assert profile.levels["most"].quality == {}
    assert profile.measured != date(2000, 1, 1)
    assert profile.machine.endswith("cores")
    assert profile.runtime.startswith("onnxruntime")
    for name, saved in profile.levels.items():
        assert [point.batch for point in saved.latency] == [1, 2, 4, 8]
        assert saved.latency[0].p50_ms == rows[name]["p50_ms"]
        assert saved.images_per_second == rows[name]["images_per_second"]
        assert saved.peak_memory_mb == 100.0
    run_json(capsys, folder, "--save")


@pytest.mark.usefixtures("no_probe")
def test_compare_with_another_bundle(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder, plain = make(), make("plain", method="none")
    report = run_json(capsys, folder, "--compare", plain)
    # The other bundle never reduces, so only the unreduced plan runs on both.
    (compared,) = report["compare"]["levels"]
    assert compared["level"] == "exact"
    assert compared["low"] <= compared["ratio"] <= compared["high"]
    assert len(report["levels"]) == 3
    report = run_json(capsys, folder, "--compare", make("again"))
    assert [result["level"] for result in report["compare"]["levels"]] == ["exact", "half", "most"]
    assert command.main([str(folder), "--compare", str(plain), *QUICK]) == 0
    assert "Compared with" in capsys.readouterr().out


def test_the_export_extra_is_not_imported_without_need() -> None:
    line = (
        "import tokenfold.bench.command, sys; "
        "sys.exit(not sys.modules.keys().isdisjoint(['torch', 'onnx']))"
    )
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0


def test_an_interrupt_ends_quietly(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object, **_options: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(on_cpu, "measure_peak", interrupt)
    assert command.main([str(make()), "--json"]) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_probe")
def test_impossible_requests_are_refused(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "manifest.json is missing" in refusal(capsys, tmp_path)
    assert "manifest.json is missing" in refusal(capsys, tmp_path / "absent")
    folder = make()
    assert "no level 'turbo'" in refusal(capsys, folder, "--levels", "turbo")
    assert "differ" in refusal(capsys, folder, "--compare", make("large", size=(16, 16)))
    assert "--batch" in refusal(capsys, folder, "--save", "--batch", "2")
    assert "--levels" in refusal(capsys, folder, "--save", "--levels", "half")
    (folder / MODEL).write_bytes(b"altered")
    assert "sha256 differs" in refusal(capsys, folder)
    (folder / "manifest.json").write_text("{}")
    assert "manifest.json" in refusal(capsys, folder)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "0"],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--seconds", "soon"],
        ["--threads", "0"],
        ["--batch", "x"],
        ["--r", "-1"],
        ["--turbo"],
    ],
)
def test_invalid_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["bundle", *arguments])
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_help_describes_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(["--help"])
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("--compare", "--torch", "medians over the rounds", "p50 and p99 are times of"):
        assert text in shown
