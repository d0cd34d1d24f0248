"""Builders: their progress, their ends, and that none outlives what wants it."""

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

LIKELIHOOD = Path("/proc/self/oom_score_adj")


def run(line: list[str], stopping: threading.Event | None = None) -> list[Progress]:
    found: list[Progress] = []
    build(line, found.append, stopping or threading.Event())
    return found


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def settled(what: str, least: int) -> int:
    """What a builder finds of itself, once that is at least so much: it runs before it is put last.

    Args:
        what: an expression.
    """
    code = (
        "import os, time\n"
        "end = time.monotonic() + 10\n"
        f"while (found := {what}) < {least} and time.monotonic() < end:\n"
        "    time.sleep(0.01)\n"
        'print(\'{"engine": "%d", "done": 1, "phase": ""}\' % found)\n'
    )
    (found,) = run(python(code))
    return int(found.engine)


def pid(folder: Path, name: str = builder.PID) -> int:
    return int((folder / name).read_text())


def test_progress_is_told_in_order(tmp_path: Path) -> None:
    found = run(command(tmp_path, "a.engine", "b.engine"))
    assert found[0] == Progress(0.0, "a", "step 0")
    assert found[-1] == Progress(1.0, "b", "done")
    assert [one.done for one in found] == sorted(one.done for one in found)
    assert len(found) == 21
    assert (tmp_path / "a.engine").exists()
    assert (tmp_path / "b.engine").exists()


def test_it_is_told_as_it_is_said(tmp_path: Path) -> None:
    (tmp_path / builder.GATE).touch()
    found: list[Progress] = []

    def told(progress: Progress) -> None:
        found.append(progress)
        if progress.phase == "step 9":  # the builder waits there
            (tmp_path / builder.GATE).unlink()

    build(command(tmp_path, "a.engine"), told, threading.Event())
    assert found[-1].done == 1.0


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
def test_what_is_no_progress_is_nothing(line: str) -> None:
    assert run(python(f"print({line!r})")) == []


@pytest.mark.parametrize(
    ("said", "done"), [("2", 1.0), ("-1", 0.0), ("NaN", 0.0), ("1e999", 1.0), ("1", 1.0)]
)
def test_it_is_a_share(said: str, done: float) -> None:
    line = f'{{"engine": "a", "done": {said}, "phase": ""}}'
    assert run(python(f"print({line!r})")) == [Progress(done, "a", "")]


def test_a_line_may_come_in_pieces() -> None:
    code = (
        "import sys, time\n"
        'for piece in (\'{"engine": "é\', \'", "done": 0.5, \', \'"phase": "b"}\\n\'):\n'
        "    sys.stdout.buffer.write(piece.encode()); sys.stdout.flush(); time.sleep(0.05)\n"
    )
    assert run(python(code)) == [Progress(0.5, "é", "b")]


def test_its_last_line_is_why(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        run(command(tmp_path, "a.engine", mode="fails"))
    assert str(caught.value) == "no kernel fits"
    assert caught.value.__notes__ == ["a library complains"]
    assert not (tmp_path / "a.engine").exists()


def test_one_that_aborts(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^its builder was ended by SIGABRT: what\(\):  bad luck"):
        run(command(tmp_path, "a.engine", mode="aborts"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit(1)", "its builder ended with 1"),
        ("import sys; sys.exit(2)", "its builder ended with 2"),
        ("import os; os.kill(os.getpid(), 40)", "its builder was ended by signal 40"),
        ("import sys; sys.stderr.buffer.write(b'\\xff'); sys.exit(1)", "ended with 1: \ufffd"),
        ("import sys; sys.exit('x' * 100_000)", "x" * 500),
    ],
)
def test_other_ends(code: str, said: str) -> None:
    with pytest.raises(BuildError) as caught:
        run(python(code))
    assert str(caught.value).endswith(said)


def test_many_words_hold_nothing_up(tmp_path: Path) -> None:
    assert run(command(tmp_path, "a.engine", mode="floods"))[-1].done == 1.0


def test_one_that_is_killed(tmp_path: Path) -> None:
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
    # Its child still has the pipe.
    thread.join(10)
    try:
        assert not thread.is_alive()
        assert "SIGKILL" in str(failed[0])
    finally:
        os.kill(pid(tmp_path, builder.CHILD), signal.SIGKILL)


def test_it_ends_with_all_it_has_started(tmp_path: Path) -> None:
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


def test_one_that_says_no_more_is_stopped_too() -> None:
    stopping = threading.Event()
    timer = threading.Timer(0.5, stopping.set)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        run(python("import os, time; os.close(1); time.sleep(600)"), stopping)
    assert time.monotonic() - begun < 10


def test_it_does_not_begin_after_the_end(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(StoppedError):
        run(command(tmp_path, "a.engine"), stopping)
    assert not (tmp_path / builder.PID).exists()


def test_who_is_told_may_fail(tmp_path: Path) -> None:
    def told(_: Progress) -> None:
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        build(command(tmp_path, "a.engine", mode="hangs"), told, threading.Event())
    assert not alive(pid(tmp_path))


def test_requests_go_first() -> None:
    least = min(19, max(os.nice(0), 10))
    assert settled("os.nice(0)", least) == least


@pytest.mark.skipif(not LIKELIHOOD.exists(), reason="the system knows of no such thing")
def test_it_is_ended_first_where_memory_runs_out() -> None:
    mine = int(LIKELIHOOD.read_text())
    least = max(mine, 800)
    assert settled(f"int(open({str(LIKELIHOOD)!r}).read())", least) == least
    assert int(LIKELIHOOD.read_text()) == mine


def test_what_cannot_be_started() -> None:
    with pytest.raises(FileNotFoundError):
        run(["/there/is/no/such/builder"])


def test_it_runs_a_command(tmp_path: Path) -> None:
    line = command_line(tmp_path / "a", tmp_path / "engines", "--static-levels")
    assert line[:3] == [sys.executable, "-m", "tokenfold.runtime.tensorrt.command"]
    assert line[3:] == [
        *("--static-levels", "--engines", str(tmp_path / "engines")),
        *("--json", "--", str(tmp_path / "a")),
    ]


def test_no_name_is_an_option() -> None:
    # The command knows it all, and finds no such bundle.
    with pytest.raises(BuildError, match=f"^{re.escape(str(Path.cwd()))}/--anew") as caught:
        run(command_line(Path("--anew"), Path("-engines"), "--precision", "bf16"))
    assert len(str(caught.value).splitlines()) == 1
