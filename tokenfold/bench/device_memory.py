"""What one plan takes of the GPU's memory, in a process that runs nothing else.

A process of its own for each plan: what a session's largest run took is never given back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from tokenfold.bench.memory import MemoryProbeError
from tokenfold.bench.options import GpuBackend
from tokenfold.bench.subjects import opened, random_inputs
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device
from tokenfold.runtime.session import SessionOptions

RUNS = 4


class DevicePeak(NamedTuple):
    """Bytes of the GPU's memory that are taken.

    Attributes:
        loaded: with the weights, before the first run.
        peak: while it runs.
    """

    loaded: int
    peak: int


def device_peak(
    folder: Path,
    plan: Plan,
    *,
    batch: int,
    backend: GpuBackend = "cuda",
    engines: Path | None = None,
) -> DevicePeak:
    """Of a process that loads a bundle and runs one plan; nobody else may use the GPU meanwhile.

    Args:
        batch: images of one run.
        engines: of TensorRT, the folder of all bundles'; that of all plans runs.

    Raises:
        MemoryProbeError: the process failed.
    """
    before = device.memory().used
    more = ["--plan", json.dumps(plan), "--batch", str(batch), "--backend", backend]
    if engines is not None:
        more += ["--engines", str(engines)]
    loaded, peak = answer("tokenfold.bench.device_memory", folder, *more)
    return DevicePeak(loaded - before, peak - before)


def answer(module: str, folder: Path, *arguments: str) -> Any:
    """What a module prints of a bundle, as JSON, in a process of its own.

    Raises:
        MemoryProbeError: the process failed.
    """
    command = [sys.executable, "-m", module, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MemoryProbeError(f"measuring the GPU's memory of {folder} failed: {said[-1]}")
    return json.loads(done.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    """The watched process: load, run a few times, print what was taken."""
    parser = argparse.ArgumentParser(prog="python -m tokenfold.bench.device_memory")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--plan", type=json.loads, required=True, help="a JSON list")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--backend", choices=get_args(GpuBackend), default="cuda")
    parser.add_argument("--engines", type=Path)
    options = parser.parse_args(arguments)
    plan = tuple(options.plan)
    bundle = Bundle.open(options.bundle)
    opening = SessionOptions(options.backend, engines=options.engines, static=False)
    graphs = opened(bundle, opening)
    loaded = device.memory().used
    inputs = random_inputs(bundle, options.batch, 1)
    graphs.warm([plan], [options.batch])
    peak = loaded
    for at in range(RUNS):
        graphs.run(inputs[at % len(inputs)], plan)
        # Nothing that a run has taken is given back when it ends, so this is what it took.
        peak = max(peak, device.memory().used)
    print(json.dumps(DevicePeak(loaded, peak)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
