"""The real service, as a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import psutil  # type: ignore[import-untyped]

from load_tests.client import Target

LOOPBACK = "127.0.0.1"
# Seconds between two looks at whether the service is ready.
PAUSE = 0.05


class ServiceError(RuntimeError):
    """The service did not start; the message holds the end of what it wrote."""


@dataclass(frozen=True)
class Service:
    """A running service."""

    target: Target
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Processor time it has spent so far, children included."""
        spent = 0.0
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent += times.user + times.system
        return spent


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_ready(target: Target) -> bool:
    """Whether /readyz answers 200."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=2.0)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


@contextlib.contextmanager
def serving(
    arguments: Sequence[str], *, patience: float = 60.0, command: Sequence[str] | None = None
) -> Iterator[Service]:
    """Run `tokenfold serve` on a free loopback port, ready when the block begins.

    Args:
        arguments: after `tokenfold serve`.
        patience: seconds to wait until it is ready, and again until it has stopped.
        command: to run instead of `tokenfold serve`.

    Raises:
        ServiceError: it ended, or was not ready in time.
    """
    target = Target(LOOPBACK, free_port())
    line = [
        *(command or (sys.executable, "-m", "tokenfold", "serve")),
        *("--host", target.host, "--port", str(target.port)),
        *arguments,
    ]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, target, patience, output)
            yield Service(target, psutil.Process(process.pid))
        finally:
            _stop(process, patience)


def _wait(
    process: subprocess.Popen[bytes], target: Target, patience: float, output: IO[bytes]
) -> None:
    deadline = time.monotonic() + patience
    while not is_ready(target):
        ended = process.poll()
        if ended is None and time.monotonic() < deadline:
            time.sleep(PAUSE)
            continue
        output.seek(0)
        last = output.read().decode(errors="replace")[-4000:]
        what = f"was not ready after {patience:g} s" if ended is None else f"ended with {ended}"
        raise ServiceError(f"the service {what}:\n{last}")


def _stop(process: subprocess.Popen[bytes], patience: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
