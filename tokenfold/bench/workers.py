"""PyTorch on the GPU in processes of their own: started together, for compiling takes long.

They compile at the same time, but only one of them, or the bundle's session, is given the GPU for a
slice of time. No torch in here.
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

# As a traceback ends; torch.compile puts advice behind that.
_ERROR = re.compile(r"[\w.]*(Error|Exception|Failed|Unsupported|Interrupt)\b")


class WorkerError(RuntimeError):
    """A process failed; the message says which, with its last words."""


class TorchRun(NamedTuple):
    """What is to be measured: a network in one way, under a plan, with so many images a run."""

    way: TorchWay
    level: str
    plan: Plan
    batch: int

    def __str__(self) -> str:
        return f"PyTorch {self.way}, {self.level}, batch {self.batch}"


class Worker:
    """One process and its rows.

    Attributes:
        asked: its rows.
        torch: PyTorch's version, once it is ready.
        logits: (few, classes) of each row, once it is ready.
    """

    def __init__(self, bundle: Path, runs: Sequence[TorchRun], *, threads: int) -> None:
        """Args:
        threads: that compile at once.
        """
        self.runs = list(runs)
        self.torch = ""
        self.logits: list[Float] = []
        self._graphs: dict[int, bool | None] = {}
        self._bundle = bundle
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `close` does
        self._ended = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            WorkerError: it failed, or was closed meanwhile.
        """
        rows = json.dumps([(one.way, one.plan, one.batch) for one in self.runs])
        with self._lock:
            if self._ended:
                raise WorkerError("it was not started in time")
            self._process = subprocess.Popen(
                [*COMMAND, str(self._bundle), "--rows", rows],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": str(self._threads)},
            )
        ready = self._answer()
        self.torch = ready["torch"]
        self.logits = [np.asarray(one, dtype=np.float32) for one in ready["logits"]]

    def subject(self, row: int) -> TimedSubject:
        """What gives one of the rows its slices."""

        def seconds(most: float) -> float:
            assert self._process is not None
            assert self._process.stdin is not None
            # Where it has died, its last words are the answer.
            with suppress(BrokenPipeError):
                print(json.dumps([row, most]), file=self._process.stdin, flush=True)
            found = self._answer()
            self._graphs[row] = found["graph"]
            return float(found["seconds"])

        return TimedSubject(seconds, self.runs[row].batch)

    def graph(self, row: int) -> bool:
        """Whether a CUDA graph was faster in this row than running it directly."""
        return bool(self._graphs.get(row))

    def end(self) -> None:
        """End the process, in whatever state; whoever waits for it learns that."""
        with self._lock:
            self._ended = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Close the files of a process that was ended, and that nobody waits for any more."""
        self._said.close()
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                # What it did not live to read goes nowhere.
                with suppress(BrokenPipeError):
                    stream.close()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            raise WorkerError(_reason(self._said.read()) or f"exit code {self._process.returncode}")
        return json.loads(line)


def _reason(said: str) -> str:
    """What a process complained of last: an error, rather than the advice that may follow it."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1]


Ready = dict[TorchRun, tuple[Worker, int]]
"""Where to find each row that can be measured: the process, and the row's place there."""


class Workers:
    """All that was asked of PyTorch. Ends its processes when the block is left."""

    def __init__(self, bundle: Path, runs: Sequence[TorchRun]) -> None:
        """Start them, a few at a time."""
        groups = _groups(runs)
        at_once = max(1, min(len(groups), cores() // 2))
        threads = max(1, cores() // at_once)
        self._workers = [Worker(bundle, group, threads=threads) for group in groups]
        self._pool = ThreadPoolExecutor(at_once)
        self._starting: dict[Future[None], Worker] = {
            self._pool.submit(one.start): one for one in self._workers
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in self._workers:
            one.end()
        self._pool.shutdown(cancel_futures=True)
        for one in self._workers:
            one.close()

    def __len__(self) -> int:
        return len(self._workers)

    def ready(
        self, seconds: float, step: Callable[[], None] = lambda: None
    ) -> tuple[Ready, list[str]]:
        """Wait for them.

        Args:
            seconds: at most; what is not ready by then is ended.
            step: called for each that is ready, or has failed.

        Returns:
            What can be measured, and why the rest cannot.
        """
        found: Ready = {}
        lost: list[str] = []
        begin = time.monotonic()
        for future, worker in self._starting.items():
            what = "; ".join(map(str, worker.runs))
            try:
                future.result(max(0.0, begin + seconds - time.monotonic()))
            except TimeoutError:
                lost.append(f"{what}: not ready within {seconds:g} s")
                worker.end()
            except WorkerError as error:
                lost.append(f"{what}: {error}")
            else:
                found |= {one: (worker, row) for row, one in enumerate(worker.runs)}
                notice(f"{what}: ready after {time.monotonic() - begin:.0f} s")
            step()
        return found, lost


def _groups(runs: Sequence[TorchRun]) -> list[list[TorchRun]]:
    """Which rows share a process, what takes longest first.

    A compiled network has its own. Blocks compile once for plans that reduce and once for those
    that do not, and again for single images; nothing is compiled of what is eager.
    """
    groups: dict[object, list[TorchRun]] = {}
    for one in runs:
        kind: object = one
        if one.way == "blocks":
            kind = one.way, any(one.plan), one.batch == 1
        elif one.way == "eager":
            kind = one.way
        groups.setdefault(kind, []).append(one)
    return sorted(groups.values(), key=lambda group: not any(group[0].plan))
