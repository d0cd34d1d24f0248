"""Run engine builds in a child process, for servers and benchmarks.

A builder takes gigabytes of memory, and some of its failures end its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

# The command `tokenfold build`, found without a search path. Its errors begin with `_PREFIX`.
COMMAND = (sys.executable, "-m", "tokenfold.runtime.tensorrt.command")
_PREFIX = "tokenfold build: "

# Seconds between two checks whether the build should stop.
_POLL_SECONDS = 0.1
# Niceness of a builder: requests that are answered meanwhile have priority.
_NICENESS = 10
# Out-of-memory score, of 1000: when memory runs out, in a container too, the kernel kills the
# builder rather than the server.
_OOM_SCORE = 800
# How much of stderr is kept: bytes in total, and characters per line.
_STDERR_TAIL_BYTES = 4096
_MAX_LINE_LENGTH = 500
# Exit code of a builder whose last line on stderr states the error.
_EXIT_STATED_ERROR = 2


class Progress(NamedTuple):
    """Progress of a builder.

    Attributes:
        done: completed fraction of all engines, 0 to 1.
        engine: the engine that is being built.
        phase: the phase of its build.
    """

    done: float
    engine: str
    phase: str


ProgressCallback = Callable[[Progress], None]


class BuildError(RuntimeError):
    """A builder failed. The message has the last lines of its output."""


class StoppedError(Exception):
    """A build was stopped, because its result is not needed any more."""


def command_line(bundle: Path, engines: Path, *options: str) -> list[str]:
    """Return the command that builds the engines of a bundle.

    Args:
        bundle: the bundle's folder.
        engines: the folder of the engines of all bundles.
        options: further options of `tokenfold build`.
    """
    # Absolute paths, and "--": a path that begins with "-" must not be parsed as an option.
    folders = ["--engines", str(engines.absolute()), "--json", "--", str(bundle.absolute())]
    return [*COMMAND, *options, *folders]


def build(command: Sequence[str], progress: ProgressCallback, stopping: threading.Event) -> None:
    """Run a builder until it ends.

    Args:
        command: writes one JSON object with the fields of `Progress` per line to stdout. If it
            exits with 2, the last line of stderr states the error.
        progress: called for each line of progress.
        stopping: set by another thread to stop the build. The builder and all processes that it
            started are then killed.

    Raises:
        BuildError: the builder failed.
        StoppedError: `stopping` was set.
        OSError: the builder cannot be started.
    """
    if stopping.is_set():
        raise StoppedError
    # A file, because unlike a pipe it never fills up and blocks the builder.
    with tempfile.TemporaryFile() as stderr:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            process_group=0,  # So that it gets no signals of the terminal.
        ) as builder:
            try:
                _lower_priority(builder.pid)
                _follow(builder, progress, stopping)
            finally:
                if builder.poll() is None:
                    os.killpg(builder.pid, signal.SIGKILL)
        if builder.returncode:
            raise _error(builder.returncode, stderr)


def _lower_priority(pid: int) -> None:
    """Lower a process's CPU priority and raise its OOM score, where the system supports it."""
    with contextlib.suppress(OSError):
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, pid, max(niceness, _NICENESS))
    with contextlib.suppress(OSError, ValueError):
        oom_score = Path(f"/proc/{pid}/oom_score_adj")
        oom_score.write_text(str(max(int(oom_score.read_text()), _OOM_SCORE)))


def _follow(
    builder: subprocess.Popen[bytes], progress: ProgressCallback, stopping: threading.Event
) -> None:
    """Report a builder's progress until it has ended.

    Raises:
        StoppedError: `stopping` was set.
    """
    assert builder.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(builder.stdout, selectors.EVENT_READ)
        partial_line = b""
        ended = False
        while not ended:
            if stopping.is_set():
                raise StoppedError
            if not selector.select(_POLL_SECONDS):
                # A process that the builder started may keep the pipe open after the builder ended.
                ended = builder.poll() is not None
                continue
            chunk = os.read(builder.stdout.fileno(), 1 << 16)
            ended = not chunk
            *lines, partial_line = (partial_line + chunk).split(b"\n")
            for line in lines:
                if (report := _parse_progress(line)) is not None:
                    progress(report)
    while builder.poll() is None:
        if stopping.wait(_POLL_SECONDS):
            raise StoppedError


def _parse_progress(line: bytes) -> Progress | None:
    """Parse a line of progress; return None for other output, which libraries may print."""
    try:
        fields = json.loads(line)
        done = min(1.0, max(0.0, float(fields["done"])))
        return Progress(done, str(fields["engine"]), str(fields["phase"]))
    except (ValueError, TypeError, LookupError):
        return None


def _error(code: int, stderr: IO[bytes]) -> BuildError:
    end = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, end - _STDERR_TAIL_BYTES))
    lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines()]
    messages = [line.removeprefix(_PREFIX)[:_MAX_LINE_LENGTH] for line in lines if line]
    if code == _EXIT_STATED_ERROR and messages:
        error = BuildError(messages[-1])
    else:
        ending = f"was killed by {_signal(-code)}" if code < 0 else f"exited with {code}"
        error = BuildError(": ".join([f"the builder {ending}", *messages[-1:]]))
    # When a library ended the process, the reason is in the lines before the last one.
    for line in messages[:-1]:
        error.add_note(line)
    return error


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
