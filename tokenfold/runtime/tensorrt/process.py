"""Engines are built by a process of its own: a builder takes gigabytes, and where it fails badly it
takes its process with it.

Servers and benches start it here.
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

# It is `tokenfold build`, wherever that is installed, and says so where it fails.
COMMAND = (sys.executable, "-m", "tokenfold.runtime.tensorrt.command")
_NAME = "tokenfold build: "

# Seconds between looks whether it is still wanted.
_LOOK = 0.1
# Of its processor time: requests that are answered meanwhile go first.
_NICENESS = 10
# Of 1000: where memory runs out, for a container too, the kernel ends it, and not the server.
_ENDED_FIRST = 800
# What is kept of its last words: bytes, and characters of the last line.
_TAIL = 4096
_LINE = 500
# Its exit code where it says in a line what is wrong.
_SAID = 2


class Progress(NamedTuple):
    """How far a builder is.

    Attributes:
        done: 0 to 1, over all that it builds.
        engine: the one that it is at.
        phase: what it does there.
    """

    done: float
    engine: str
    phase: str


Told = Callable[[Progress], None]


class BuildError(RuntimeError):
    """A builder has failed; the message has its last words."""


class StoppedError(Exception):
    """What is being built is not wanted any more."""


def command_line(bundle: Path, engines: Path, *options: str) -> list[str]:
    """What builds the engines of a bundle.

    Args:
        bundle: its folder.
        engines: the folder of the engines of all bundles.
        options: more of `tokenfold build`.
    """
    # Absolute, and after "--": a name that begins with "-" is no option.
    folders = ["--engines", str(engines.absolute()), "--json", "--", str(bundle.absolute())]
    return [*COMMAND, *options, *folders]


def build(command: Sequence[str], told: Told, stopping: threading.Event) -> None:
    """Run a builder to its end.

    Args:
        command: writes an object of JSON per line to stdout, of `Progress`; and where it ends with
            2, why, as the last line of stderr.
        told: of its progress.
        stopping: set when it is not wanted any more: it is killed then, with all it has started.

    Raises:
        BuildError: it failed.
        StoppedError: it was not wanted any more.
        OSError: it cannot be started.
    """
    if stopping.is_set():
        raise StoppedError
    # A file, which unlike a pipe is never full.
    with tempfile.TemporaryFile() as words:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            process_group=0,  # so that no terminal's signal comes to it
        ) as builder:
            try:
                _put_last(builder.pid)
                _follow(builder, told, stopping)
            finally:
                if builder.poll() is None:
                    os.killpg(builder.pid, signal.SIGKILL)
        if builder.returncode:
            raise _error(builder.returncode, words)


def _put_last(pid: int) -> None:
    """Have others go before a process, where the system knows of that."""
    with contextlib.suppress(OSError):
        own = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, pid, max(own, _NICENESS))
    with contextlib.suppress(OSError, ValueError):
        likelihood = Path(f"/proc/{pid}/oom_score_adj")
        likelihood.write_text(str(max(int(likelihood.read_text()), _ENDED_FIRST)))


def _follow(builder: subprocess.Popen[bytes], told: Told, stopping: threading.Event) -> None:
    """Tell what it says, until it has ended.

    Raises:
        StoppedError: it is not wanted any more.
    """
    assert builder.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(builder.stdout, selectors.EVENT_READ)
        begun = b""
        ended = False
        while not ended:
            if stopping.is_set():
                raise StoppedError
            if not selector.select(_LOOK):
                # What it has started may hold the pipe open for longer than it lives.
                ended = builder.poll() is not None
                continue
            piece = os.read(builder.stdout.fileno(), 1 << 16)
            ended = not piece
            *lines, begun = (begun + piece).split(b"\n")
            for line in lines:
                if (progress := _progress(line)) is not None:
                    told(progress)
    while builder.poll() is None:
        if stopping.wait(_LOOK):
            raise StoppedError


def _progress(line: bytes) -> Progress | None:
    """None where it says nothing of it: libraries print what they like."""
    try:
        found = json.loads(line)
        done = min(1.0, max(0.0, float(found["done"])))
        return Progress(done, str(found["engine"]), str(found["phase"]))
    except (ValueError, TypeError, LookupError):
        return None


def _error(code: int, words: IO[bytes]) -> BuildError:
    end = words.seek(0, os.SEEK_END)
    words.seek(max(0, end - _TAIL))
    lines = [line.strip() for line in words.read().decode(errors="replace").splitlines()]
    said = [line.removeprefix(_NAME)[:_LINE] for line in lines if line]
    if code == _SAID and said:
        error = BuildError(said[-1])
    else:
        how = f"was ended by {_signal(-code)}" if code < 0 else f"ended with {code}"
        error = BuildError(": ".join([f"its builder {how}", *said[-1:]]))
    # Of a library that ended the process it is the lines before the last that say why.
    for line in said[:-1]:
        error.add_note(line)
    return error


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
