"""Processes that run PyTorch on the GPU, started together because compiling takes long.

The processes compile at the same time, but only one subject at a time uses the GPU for a slice of
time. This module does not import torch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from tokenfold.bench.measure import TimedSubject
from tokenfold.bench.options import TorchWay
from tokenfold.bench.stages import notice
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.machine import cores
from tokenfold.runtime.pair import Float

COMMAND = (sys.executable, "-m", "tokenfold.bench.torch_cuda")

# The last line of a traceback; torch.compile prints advice after it.
_ERROR = re.compile(r"[\w.]*(Error|Exception|Failed|Unsupported|Interrupt)\b")


class WorkerError(RuntimeError):
    """A process failed; the message contains the end of its error output."""


class TorchRun(NamedTuple):
    """A run of PyTorch to measure: a way to run it, a level's plan, and images per run."""

    way: TorchWay
    level: str
    plan: Plan
    batch: int

    def __str__(self) -> str:
        return f"PyTorch {self.way}, {self.level}, batch {self.batch}"


class Worker:
    """One process and the runs that it measures.

    Attributes:
        runs: runs to measure; the index of a run is its row.
        torch: PyTorch's version, once the process is ready.
        logits: (few, classes) of each run, once the process is ready.
    """

    def __init__(self, bundle: Path, runs: Sequence[TorchRun], *, threads: int) -> None:
        """Prepare the worker; `start` starts its process.

        Args:
            threads: concurrent compiler threads.
        """
        self.runs = list(runs)
        self.torch = ""
        self.logits: list[Float] = []
        self._graphs: dict[int, bool | None] = {}
        self._bundle = bundle
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `close` does
        self._ended = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            WorkerError: the process failed, or was ended meanwhile.
        """
        rows = json.dumps([(run.way, run.plan, run.batch) for run in self.runs])
        with self._lock:
            if self._ended:
                raise WorkerError("the process was not started in time")
            self._process = subprocess.Popen(
                [*COMMAND, str(self._bundle), "--rows", rows],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(self._threads)},
            )
        ready = self._answer()
        self.torch = ready["torch"]
        self.logits = [np.asarray(logits, dtype=np.float32) for logits in ready["logits"]]

    def subject(self, row: int) -> TimedSubject:
        """Return a subject that measures one of the runs."""

        def seconds(budget: float) -> float:
            assert self._process is not None
            assert self._process.stdin is not None
            # If the process has died, reading its answer raises the error.
            with suppress(BrokenPipeError):
                print(json.dumps([row, budget]), file=self._process.stdin, flush=True)
            reply = self._answer()
            self._graphs[row] = reply["graph"]
            return float(reply["seconds"])

        return TimedSubject(seconds, self.runs[row].batch)

    def graph(self, row: int) -> bool:
        """Whether the run of a row was faster as a CUDA graph than directly."""
        return bool(self._graphs.get(row))

    def end(self) -> None:
        """End the process in any state; a thread that waits for it gets a WorkerError."""
        with self._lock:
            self._ended = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Close the files of an ended process that no thread waits for."""
        self._stderr.close()
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                # Closing flushes input that the dead process did not read.
                with suppress(BrokenPipeError):
                    stream.close()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            raise WorkerError(
                _reason(self._stderr.read()) or f"exit code {self._process.returncode}"
            )
        return json.loads(line)


def _reason(stderr: str) -> str:
    """Return the last error in a process's output, rather than advice that may follow it."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1]


Ready = dict[TorchRun, tuple[Worker, int]]
"""The process and row of each run that can be measured."""


class Workers:
    """All PyTorch processes of a bench; leaving the context ends them."""

    def __init__(self, bundle: Path, runs: Sequence[TorchRun]) -> None:
        """Start the processes, a few at a time."""
        groups = _groups(runs)
        max_starting = max(1, min(len(groups), cores() // 2))
        threads = max(1, cores() // max_starting)
        self._workers = [Worker(bundle, group, threads=threads) for group in groups]
        self._pool = ThreadPoolExecutor(max_starting)
        self._starting: dict[Future[None], Worker] = {
            self._pool.submit(worker.start): worker for worker in self._workers
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.end()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def __len__(self) -> int:
        return len(self._workers)

    def ready(
        self, seconds: float, step: Callable[[], None] = lambda: None
    ) -> tuple[Ready, list[str]]:
        """Wait until the processes are ready.

        Args:
            seconds: time limit; processes that are not ready by then are ended.
            step: called for each process that is ready or has failed.

        Returns:
            The runs that can be measured, and the reasons why others cannot.
        """
        ready: Ready = {}
        lost: list[str] = []
        begin = time.monotonic()
        for future, worker in self._starting.items():
            names = "; ".join(map(str, worker.runs))
            try:
                future.result(max(0.0, begin + seconds - time.monotonic()))
            except TimeoutError:
                lost.append(f"{names}: not ready within {seconds:g} s")
                worker.end()
            except WorkerError as error:
                lost.append(f"{names}: {error}")
            else:
                ready |= {run: (worker, row) for row, run in enumerate(worker.runs)}
                notice(f"{names}: ready after {time.monotonic() - begin:.0f} s")
            step()
        return ready, lost


def _groups(runs: Sequence[TorchRun]) -> list[list[TorchRun]]:
    """Group the runs that share a process, slowest to compile first.

    A compiled network has its own process. Blocks compile once for plans that reduce and once for
    plans that do not, and again for single images. Eager runs compile nothing.
    """
    groups: dict[object, list[TorchRun]] = {}
    for run in runs:
        group_key: object = run
        if run.way == "blocks":
            group_key = run.way, any(run.plan), run.batch == 1
        elif run.way == "eager":
            group_key = run.way
        groups.setdefault(group_key, []).append(run)
    return sorted(groups.values(), key=lambda group: not any(group[0].plan))
