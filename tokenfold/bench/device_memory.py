"""GPU memory of one plan, measured in a process that runs nothing else.

Each plan gets its own process, because a session never returns the memory of its largest run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from tokenfold.bench.memory import run_probe
from tokenfold.bench.options import GpuBackend
from tokenfold.bench.subjects import open_graphs, random_inputs
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device
from tokenfold.runtime.session import SessionOptions

RUNS = 4


class DevicePeak(NamedTuple):
    """GPU memory in use, bytes.

    Attributes:
        loaded: with the weights loaded, before the first run.
        peak: while the plan runs.
    """

    loaded: int
    peak: int


def measure_device_peak(
    folder: Path,
    plan: Plan,
    *,
    batch: int,
    backend: GpuBackend = "cuda",
    engines: Path | None = None,
) -> DevicePeak:
    """Measure the GPU memory of a process that loads a bundle and runs one plan.

    No other process may use the GPU meanwhile.

    Args:
        batch: images per run.
        engines: folder of the TensorRT engines of all bundles. The engine for all plans runs.

    Raises:
        MemoryProbeError: the process failed.
    """
    before = device.memory().used
    arguments = ["--plan", json.dumps(plan), "--batch", str(batch), "--backend", backend]
    if engines is not None:
        arguments += ["--engines", str(engines)]
    loaded, peak = run_probe("tokenfold.bench.device_memory", folder, *arguments)
    return DevicePeak(loaded - before, peak - before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the probe: load the bundle, run the plan a few times, print the memory in use."""
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
    graphs = open_graphs(bundle, opening)
    loaded = device.memory().used
    inputs = random_inputs(bundle, options.batch, 1)
    graphs.warm([plan], [options.batch])
    peak = loaded
    for index in range(RUNS):
        graphs.run(inputs[index % len(inputs)], plan)
        # A session keeps the memory of its runs, so this includes all that the run used.
        peak = max(peak, device.memory().used)
    print(json.dumps(DevicePeak(loaded, peak)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
