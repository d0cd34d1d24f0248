"""Peak memory of one plan: the largest resident set of a process that runs nothing else.

Each plan gets its own process, because a session keeps the memory of its largest run. Measured one
after the other in one process, every plan would show the first plan's memory.
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
from typing import Any, NamedTuple

from tokenfold.bench.measure import Subject
from tokenfold.bench.subjects import graph_subject, open_graphs, random_inputs
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan

RUNS_PER_CALLER = 4
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class MemoryProbeError(RuntimeError):
    """The measured process failed; the message says why."""


class Peak(NamedTuple):
    """Peak resident set while a plan runs, in MB of 10^6 bytes.

    Attributes:
        total: the whole process: interpreter, libraries, weights and activations.
        working: increase over the resident set right after loading.
        running_only: whether the peak excludes memory that loading used and freed, as it should;
            some systems cannot reset the peak of a process.
    """

    total: float
    working: float
    running_only: bool = True


def measure_peak(
    folder: Path, plan: Plan, *, batch: int, callers: int, torch_threads: int = 0
) -> Peak:
    """Measure the peak memory of a process that loads a bundle and runs one plan.

    Args:
        batch: images per run.
        callers: threads that run concurrently.
        torch_threads: threads inside each run of eager PyTorch; 0 to run the bundle's graph.

    Raises:
        MemoryProbeError: the process failed.
    """
    arguments = ["--plan", json.dumps(plan)]
    for name, value in (("batch", batch), ("callers", callers), ("torch-threads", torch_threads)):
        arguments += [f"--{name}", str(value)]
    return Peak(*run_probe("tokenfold.bench.memory", folder, *arguments))


def run_probe(module: str, folder: Path, *arguments: str) -> Any:
    """Run a probe module on a bundle in a new process and return the JSON that it prints.

    Raises:
        MemoryProbeError: the process failed.
    """
    command = [sys.executable, "-m", module, str(folder), *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        lines = completed.stderr.strip().splitlines() or [f"exit code {completed.returncode}"]
        raise MemoryProbeError(f"measuring the memory of {folder} failed: {lines[-1]}")
    return json.loads(completed.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the probe: load the bundle, run the plan a few times, print the peak."""
    parser = argparse.ArgumentParser(prog="python -m tokenfold.bench.memory")
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
    running_only = _reset_peak()
    loaded = _status_bytes("VmRSS")
    with ThreadPoolExecutor(subject.callers) as pool:
        list(pool.map(subject.run, range(RUNS_PER_CALLER * subject.callers)))
    # Not getrusage's ru_maxrss, which starts from the parent's peak before this program began.
    total = _status_bytes("VmHWM")
    print(json.dumps(Peak(total / 1e6, max(0, total - loaded) / 1e6, running_only)))
    return 0


def _subject(bundle: Bundle, plan: Plan, batch: int, callers: int, torch_threads: int) -> Subject:
    if torch_threads:
        # Imported here only: torch is optional, and would count as memory of the graph.
        from tokenfold.bench.torch_eager import load_eager

        return load_eager(bundle, batch).subject(plan, callers, torch_threads)
    graphs = open_graphs(bundle)
    return graph_subject(graphs, random_inputs(bundle, batch), plan, callers, batch)


def _reset_peak() -> bool:
    """Reset the peak to the current resident set; return False if the system cannot.

    Loading leaves tens of MB of freed memory with the allocator. The amount varies between runs by
    more than the levels differ.
    """
    # Some C libraries lack malloc_trim; freed memory then counts as loaded.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise MemoryProbeError(f"{_STATUS} has no line {name!r}")


if __name__ == "__main__":
    sys.exit(main())
