"""A bundle's bare session under load, as a process that is told over a pipe when to run.

In a process of its own it shares no interpreter lock with whatever else is measured, and keeps its
session between the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from load_tests.images import synthetic
from load_tests.load import Report, closed_loop
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.machine import cores


class Bare:
    """The parent's end of the process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def load(self, level: str, seconds: float, warm_up: float) -> Report:
        """Run at one level for some seconds.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"level": level, "seconds": seconds, "warm_up": warm_up}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the bare session's process ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return Report(**found)


@contextlib.contextmanager
def bare_session(bundle: Path, callers: int) -> Iterator[Bare]:
    """Run the process; it ends with the block."""
    line = [sys.executable, "-m", "load_tests.bare", str(bundle), "--callers", str(callers)]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Bare(process)
        finally:
            process.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer each order on stdin with one line of JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.bare")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--callers", type=int, default=cores())
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    # Here, so that a parent who imports this module loads no runtime of its own.
    from tokenfold.runtime.dual import DualSession
    from tokenfold.runtime.session import Session

    answer: Callable[[Any, Sequence[int]], object]
    if bundle.manifest.kind == "dual":
        answer = DualSession(bundle, threads=1).embed_images
    else:
        answer = Session(bundle, threads=1).run
    image = synthetic(*bundle.manifest.preprocess.size)[None]
    for line in sys.stdin:
        order = json.loads(line)
        plan = bundle.manifest.levels[order.pop("level")].plan

        def run(plan: Sequence[int] = plan) -> None:
            answer(image, plan)

        report = closed_loop([run] * options.callers, **order)
        print(json.dumps(report.as_json()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
