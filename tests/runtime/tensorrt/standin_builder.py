"""Fake engine builder, run as a process. A JSON argument controls its behaviour:

    python standin_builder.py '{"folder": "/tmp/engines", "files": ["a.engine"], "mode": "well"}'

The builder writes its process id to `builder.pid` in the folder. In the mode "hangs" it starts a
child process, and writes the child's id to `child.pid`. While a file `gate` exists in the folder,
the builder waits before it finishes an engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

PID = "builder.pid"
CHILD = "child.pid"
GATE = "gate"


def command(folder: Path, *files: str, mode: str = "well") -> list[str]:
    """Return the command that runs the builder."""
    request: dict[str, Any] = {"folder": str(folder), "files": files, "mode": mode}
    return [sys.executable, __file__, json.dumps(request)]


def alive(number: int) -> bool:
    """Whether the process exists and has not ended."""
    try:
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def report(done: float, engine: str, phase: str) -> None:
    """Print a line of progress."""
    print(json.dumps({"engine": engine, "done": done, "phase": phase}), flush=True)


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.rename(path)


def main(request: dict[str, Any]) -> int:
    """Write the files of a request, reporting progress, and return the exit code."""
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / PID, str(os.getpid()))
    print("a library says hello", flush=True)
    print("a library complains", file=sys.stderr, flush=True)
    files = request["files"]
    for index, file in enumerate(files):
        engine = Path(file).stem
        for step in range(10):
            report((index + step / 10) / len(files), engine, f"step {step}")
            if step == 5:
                _apply_mode(request["mode"], folder)
        while (folder / GATE).exists():
            time.sleep(0.01)
        write(folder / file, "an engine")
    report(1.0, engine, "done")
    return 0


def _apply_mode(mode: str, folder: Path) -> None:
    match mode:
        case "fails":
            print("tokenfold build: no kernel fits\n", file=sys.stderr, flush=True)
            sys.exit(2)
        case "aborts":
            print("what():  bad luck", file=sys.stderr, flush=True)
            os.abort()
        case "hangs":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            write(folder / CHILD, str(child.pid))
            time.sleep(600)
        case "floods":
            sys.stderr.write("blah\n" * 100_000)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
