"""Run the real service in a separate process."""

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

from load_tests.client import ServiceAddress

LOOPBACK = "127.0.0.1"
# Seconds between two checks whether the service is ready.
PAUSE = 0.05


class ServiceError(RuntimeError):
    """The service did not start; the message contains the end of its output."""


@dataclass(frozen=True)
class Service:
    """A running service."""

    address: ServiceAddress
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Return the processor time used so far, including child processes."""
        seconds = 0.0
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system
        return seconds


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_ready(address: ServiceAddress) -> bool:
    """Whether /readyz answers 200."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=2.0)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


@contextlib.contextmanager
def serving(
    arguments: Sequence[str], *, timeout: float = 60.0, command: Sequence[str] | None = None
) -> Iterator[Service]:
    """Run `tokenfold serve` on a free loopback port; the service is ready when the block begins.

    Args:
        arguments: arguments of the command, in addition to host and port.
        timeout: maximum seconds until the service is ready, and again until it has stopped.
        command: command to run instead of `tokenfold serve`.

    Raises:
        ServiceError: the service ended, or was not ready in time.
    """
    address = ServiceAddress(LOOPBACK, free_port())
    full_command = [
        *(command or (sys.executable, "-m", "tokenfold", "serve")),
        *("--host", address.host, "--port", str(address.port)),
        *arguments,
    ]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            full_command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _wait(process, address, timeout, output)
            yield Service(address, psutil.Process(process.pid))
        finally:
            _stop(process, timeout)


def _wait(
    process: subprocess.Popen[bytes], address: ServiceAddress, timeout: float, output: IO[bytes]
) -> None:
    deadline = time.monotonic() + timeout
    while not is_ready(address):
        exit_code = process.poll()
        if exit_code is None and time.monotonic() < deadline:
            time.sleep(PAUSE)
            continue
        output.seek(0)
        output_end = output.read().decode(errors="replace")[-4000:]
        problem = (
            f"was not ready after {timeout:g} s" if exit_code is None else f"ended with {exit_code}"
        )
        raise ServiceError(f"the service {problem}:\n{output_end}")


def _stop(process: subprocess.Popen[bytes], timeout: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
