"""Peak memory of one plan: the largest resident set of a process that runs nothing else.

A process of its own for each plan, because a session keeps what its largest run took: measured
one after the other in one process, every plan would show the first one's memory.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from export.bundle import Bundle
from export.measure import Subject
from export.runtime import Session
from export.subjects import of_graph, random_batches
from models.reduction.schedule import Plan

RUNS_PER_CALLER = 4
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class MemoryProbeError(RuntimeError):
    """The watched process failed; the message says why."""


def peak_mb(folder: Path, plan: Plan, *, batch: int, callers: int, torch_threads: int = 0) -> float:
    """Peak resident memory while a plan runs, in MB of 10^6 bytes.

    All that the process holds then counts: interpreter, libraries, weights and activations. What
    loading took and freed again does not.

    Args:
        batch: images of one run.
        callers: threads that run at once.
        torch_threads: inside each run of eager PyTorch; 0 for the bundle's graph.

    Raises:
        MemoryProbeError: the process failed.
    """
    command = [sys.executable, "-m", "export.memory", str(folder), "--plan", json.dumps(plan)]
    for name, value in (("batch", batch), ("callers", callers), ("torch-threads", torch_threads)):
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MemoryProbeError(f"measuring the memory of {folder} failed: {said[-1]}")
    return float(done.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    """The watched process: load, run a few times, print the peak."""
    parser = argparse.ArgumentParser(prog="python -m export.memory")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--plan", type=json.loads, required=True, help="a JSON list")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--torch-threads", type=int, default=0)
    options = parser.parse_args(arguments)
    subject = _subject(
        Bundle.open(options.bundle),
        tuple(options.plan),
        options.batch,
        options.callers,
        options.torch_threads,
    )
    _forget_loading()
    with ThreadPoolExecutor(subject.callers) as pool:
        list(pool.map(subject.run, range(RUNS_PER_CALLER * subject.callers)))
    print(_peak_bytes() / 1e6)
    return 0


def _subject(bundle: Bundle, plan: Plan, batch: int, callers: int, torch_threads: int) -> Subject:
    batches = random_batches(bundle.manifest.preprocess.size, batch)
    if torch_threads:
        # Here only: torch is optional, and would count as the graph's memory.
        from export.eager import Eager

        return Eager(bundle.manifest).subject(batches, plan, callers, torch_threads)
    return of_graph(Session(bundle), batches, plan, callers)


def _forget_loading() -> None:
    """Start the peak anew, from what running needs.

    Loading leaves tens of MB of freed memory with the allocator, another amount each time, more
    than the levels differ by.
    """
    # What a system or its C library cannot do is left out: loading counts then.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def _peak_bytes() -> int:
    # Not getrusage's ru_maxrss: that starts from what the parent had before this program began.
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise MemoryProbeError(f"{_STATUS} tells no peak")


if __name__ == "__main__":
    sys.exit(main())
