"""Load on a bundle's bare session, in a separate process that takes requests over a pipe.

The separate process shares no interpreter lock with anything else that is measured, and keeps its
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


class BareSession:
    """The parent's end of the process that runs the session."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def load(self, level: str, seconds: float, warm_up: float) -> Report:
        """Run the session at a level for some seconds.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"level": level, "seconds": seconds, "warm_up": warm_up}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(
                f"the process of the bare session ended with exit code {self._process.wait()}"
            )
        report: dict[str, Any] = json.loads(reply)
        return Report(**report)


@contextlib.contextmanager
def bare_session(bundle: Path, callers: int) -> Iterator[BareSession]:
    """Start the process; leaving the context ends it."""
    command = [sys.executable, "-m", "load_tests.bare", str(bundle), "--callers", str(callers)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield BareSession(process)
        finally:
            process.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer each request on stdin with one line of JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.bare")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--callers", type=int, default=cores())
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    # Imported here, so that a parent that imports this module does not load the runtime.
    from tokenfold.runtime.dual import DualSession
    from tokenfold.runtime.session import Session

    run_session: Callable[[Any, Sequence[int]], object]
    if bundle.manifest.kind == "dual":
        run_session = DualSession(bundle, threads=1).embed_images
    else:
        run_session = Session(bundle, threads=1).run
    image = synthetic(*bundle.manifest.preprocess.size)[None]
    for message in sys.stdin:
        request = json.loads(message)
        plan = bundle.manifest.levels[request.pop("level")].plan

        def run(plan: Sequence[int] = plan) -> None:
            run_session(image, plan)

        report = closed_loop([run] * options.callers, **request)
        print(json.dumps(report.as_json()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
