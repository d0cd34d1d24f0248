"""A builder of engines, run as a process, that builds nothing: what it does is said in JSON.

    python standin_builder.py '{"folder": "/tmp/engines", "files": ["a.engine"], "mode": "well"}'

It leaves its process id in the folder, as `builder.pid`; and where it is to hang, that of a process
that it has started, as `child.pid`. A file `gate` there holds it up, before each engine's end.
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
    """What runs it."""
    asked: dict[str, Any] = {"folder": str(folder), "files": files, "mode": mode}
    return [sys.executable, __file__, json.dumps(asked)]


def alive(number: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def tell(done: float, engine: str, phase: str) -> None:
    """A line of progress."""
    print(json.dumps({"engine": engine, "done": done, "phase": phase}), flush=True)


def write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.rename(path)


def main(asked: dict[str, Any]) -> int:
    """Do what is asked. Returns the exit code."""
    folder = Path(asked["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / PID, str(os.getpid()))
    print("a library says hello", flush=True)
    print("a library complains", file=sys.stderr, flush=True)
    files = asked["files"]
    for at, file in enumerate(files):
        engine = Path(file).stem
        for step in range(10):
            tell((at + step / 10) / len(files), engine, f"step {step}")
            if step == 5:
                _misbehave(asked["mode"], folder)
        while (folder / GATE).exists():
            time.sleep(0.01)
        write(folder / file, "an engine")
    tell(1.0, engine, "done")
    return 0


def _misbehave(mode: str, folder: Path) -> None:
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
