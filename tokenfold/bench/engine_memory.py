"""GPU memory of a bundle's engines, measured in a process that only loads them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from tokenfold.bench import engines
from tokenfold.bench.memory import run_probe
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import Stream, free_on_exit
from tokenfold.runtime.tensorrt import plugins, variant
from tokenfold.runtime.tensorrt.engine import Engine
from tokenfold.runtime.tensorrt.runner import EngineRunner
from tokenfold.runtime.tensorrt.store import EngineStore


def loaded_bytes(folder: Path, root: Path, *, static: bool) -> int:
    """Measure the GPU memory of a process that only loads the engines, in bytes.

    The result includes CUDA itself and the engines' working memory.

    Args:
        root: folder of the engines of all bundles.
        static: see `engines.minimal_engines`.

    Raises:
        MemoryProbeError: the process failed.
    """
    before = device.memory().used
    arguments = ["--engines", str(root), *(["--static-levels"] if static else [])]
    return int(run_probe("tokenfold.bench.engine_memory", folder, *arguments)) - before


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the probe: load the engines and print the memory in use."""
    parser = argparse.ArgumentParser(prog="python -m tokenfold.bench.engine_memory")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engines", type=Path, required=True)
    parser.add_argument("--static-levels", action="store_true")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    tensorrt = variant.load()
    registered = plugins.register(tensorrt)
    store = EngineStore(options.engines, bundle)
    specs = engines.minimal_engines(bundle, options.engines, static=options.static_levels)
    with ExitStack() as stack:
        stream = free_on_exit(Stream(), stack)
        # One runner per graph, as in a session: its engines share their working memory.
        for _, group in groupby(specs, key=lambda spec: spec.graph):
            loaded_engines = [
                Engine(tensorrt, registered, spec, store.read(spec)) for spec in group
            ]
            free_on_exit(EngineRunner(loaded_engines, stream), stack)
        print(json.dumps(device.memory().used))
    return 0


if __name__ == "__main__":
    sys.exit(main())
