"""Tests of builds in a child process: progress, errors, and that no builder outlives its caller."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.runtime.tensorrt import standin_builder as builder
from tests.runtime.tensorrt.standin_builder import alive, command
from tests.service.standin import until
from tokenfold.runtime.tensorrt.process import (
    BuildError,
    Progress,
    StoppedError,
    build,
    command_line,
)

OOM_SCORE = Path("/proc/self/oom_score_adj")


def run(command_: list[str], stopping: threading.Event | None = None) -> list[Progress]:
    reports: list[Progress] = []
    build(command_, reports.append, stopping or threading.Event())
    return reports


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def builder_value(expression: str, minimum: int) -> int:
    """Evaluate an expression in a builder, once its value is at least `minimum`.

    The builder waits, because it starts before its priority is lowered.
    """
    code = (
        "import os, time\n"
        "end = time.monotonic() + 10\n"
        f"while (value := {expression}) < {minimum} and time.monotonic() < end:\n"
        "    time.sleep(0.01)\n"
        'print(\'{"engine": "%d", "done": 1, "phase": ""}\' % value)\n'
    )
    (report,) = run(python(code))
    return int(report.engine)


def pid(folder: Path, name: str = builder.PID) -> int:
    return int((folder / name).read_text())


def test_progress_is_reported_in_order(tmp_path: Path) -> None:
    reports = run(command(tmp_path, "a.engine", "b.engine"))
    assert reports[0] == Progress(0.0, "a", "step 0")
    assert reports[-1] == Progress(1.0, "b", "done")
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    assert len(reports) == 21
    assert (tmp_path / "a.engine").exists()
    assert (tmp_path / "b.engine").exists()


def test_progress_is_reported_immediately(tmp_path: Path) -> None:
    (tmp_path / builder.GATE).touch()
    reports: list[Progress] = []

    def progress(report: Progress) -> None:
        reports.append(report)
        if report.phase == "step 9":  # The builder waits for this file to be deleted.
            (tmp_path / builder.GATE).unlink()

    build(command(tmp_path, "a.engine"), progress, threading.Event())
    assert reports[-1].done == 1.0


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        "null",
        '{"done": 0.5}',
        '{"engine": "a", "done": "x", "phase": "b"}',
        '{"engine": "a", "done": null, "phase": "b"}',
        "é",
    ],
)
def test_other_output_is_ignored(line: str) -> None:
    assert run(python(f"print({line!r})")) == []


@pytest.mark.parametrize(
    ("number", "done"), [("2", 1.0), ("-1", 0.0), ("NaN", 0.0), ("1e999", 1.0), ("1", 1.0)]
)
def test_done_is_clamped(number: str, done: float) -> None:
    line = f'{{"engine": "a", "done": {number}, "phase": ""}}'
    assert run(python(f"print({line!r})")) == [Progress(done, "a", "")]


def test_lines_may_arrive_in_pieces() -> None:
    code = (
        "import sys, time\n"
        'for piece in (\'{"engine": "é\', \'", "done": 0.5, \', \'"phase": "b"}\\n\'):\n'
        "    sys.stdout.buffer.write(piece.encode()); sys.stdout.flush(); time.sleep(0.05)\n"
    )
    assert run(python(code)) == [Progress(0.5, "é", "b")]


def test_the_last_line_of_stderr_is_the_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        run(command(tmp_path, "a.engine", mode="fails"))
    assert str(caught.value) == "no kernel fits"
    assert caught.value.__notes__ == ["a library complains"]
    assert not (tmp_path / "a.engine").exists()


def test_an_aborted_builder(tmp_path: Path) -> None:
    with pytest.raises(
        BuildError, match=r"^the builder was killed by SIGABRT: what\(\):  bad luck"
    ):
        run(command(tmp_path, "a.engine", mode="aborts"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(1)", "the builder exited with 1"),
        ("import sys; sys.exit(2)", "the builder exited with 2"),
        ("import os; os.kill(os.getpid(), 40)", "the builder was killed by signal 40"),
        ("import sys; sys.stderr.buffer.write(b'\\xff'); sys.exit(1)", "exited with 1: \ufffd"),
        ("import sys; sys.exit('x' * 100_000)", "x" * 500),
    ],
)
def test_other_exits(code: str, message: str) -> None:
    with pytest.raises(BuildError) as caught:
        run(python(code))
    assert str(caught.value).endswith(message)


def test_much_stderr_output_does_not_block(tmp_path: Path) -> None:
    assert run(command(tmp_path, "a.engine", mode="floods"))[-1].done == 1.0


def test_a_killed_builder(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def follow() -> None:
        try:
            run(command(tmp_path, "a.engine", mode="hangs"))
        except BuildError as error:
            failed.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    until(lambda: (tmp_path / builder.CHILD).exists())
    os.kill(pid(tmp_path), signal.SIGKILL)
    # The builder's child still keeps the pipe open.
    thread.join(10)
    try:
        assert not thread.is_alive()
        assert "SIGKILL" in str(failed[0])
    finally:
        os.kill(pid(tmp_path, builder.CHILD), signal.SIGKILL)


def test_stopping_kills_the_builder_and_its_children(tmp_path: Path) -> None:
    stopping = threading.Event()

    def stop() -> None:
        until((tmp_path / builder.CHILD).exists)
        stopping.set()

    threading.Thread(target=stop).start()
    with pytest.raises(StoppedError):
        run(command(tmp_path, "a.engine", mode="hangs"), stopping)
    assert not alive(pid(tmp_path))
    until(lambda: not alive(pid(tmp_path, builder.CHILD)))
    assert not (tmp_path / "a.engine").exists()


def test_a_builder_that_closed_stdout_is_stopped() -> None:
    stopping = threading.Event()
    timer = threading.Timer(0.5, stopping.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(StoppedError):
        run(python("import os, time; os.close(1); time.sleep(600)"), stopping)
    assert time.monotonic() - start < 10


def test_a_stopped_build_does_not_start(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(StoppedError):
        run(command(tmp_path, "a.engine"), stopping)
    assert not (tmp_path / builder.PID).exists()


def test_an_exception_of_the_callback_ends_the_builder(tmp_path: Path) -> None:
    def progress(_: Progress) -> None:
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        build(command(tmp_path, "a.engine", mode="hangs"), progress, threading.Event())
    assert not alive(pid(tmp_path))


def test_builders_have_low_cpu_priority() -> None:
    niceness = min(19, max(os.nice(0), 10))
    assert builder_value("os.nice(0)", niceness) == niceness


@pytest.mark.skipif(not OOM_SCORE.exists(), reason="the system has no OOM scores")
def test_builders_have_a_high_oom_score() -> None:
    score = int(OOM_SCORE.read_text())
    builder_score = max(score, 800)
    assert builder_value(f"int(open({str(OOM_SCORE)!r}).read())", builder_score) == builder_score
    assert int(OOM_SCORE.read_text()) == score


def test_a_missing_command() -> None:
    with pytest.raises(FileNotFoundError):
        run(["/there/is/no/such/builder"])


def test_command_line(tmp_path: Path) -> None:
    line = command_line(tmp_path / "a", tmp_path / "engines", "--static-levels")
    assert line[:3] == [sys.executable, "-m", "tokenfold.runtime.tensorrt.command"]
    assert line[3:] == [
        *("--static-levels", "--engines", str(tmp_path / "engines")),
        *("--json", "--", str(tmp_path / "a")),
    ]


def test_folders_are_never_parsed_as_options() -> None:
    # The command parses all arguments, and then reports that the bundle is missing.
    with pytest.raises(BuildError, match=f"^{re.escape(str(Path.cwd()))}/--anew") as caught:
        run(command_line(Path("--anew"), Path("-engines"), "--precision", "bf16"))
    assert len(str(caught.value).splitlines()) == 1
