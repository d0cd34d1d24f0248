"""What a bundle's engines take of the GPU's memory, in a process that only has them loaded."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from tokenfold.bench import engines
from tokenfold.bench.device_memory import answer
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import Stream, free_on_exit
from tokenfold.runtime.tensorrt import plugins, variant
from tokenfold.runtime.tensorrt.engine import Engine
from tokenfold.runtime.tensorrt.runner import EngineRunner
from tokenfold.runtime.tensorrt.store import EngineStore


def loaded(folder: Path, root: Path, *, static: bool) -> int:
    """Bytes that such a process takes, CUDA itself and what engines work in included.

    Args:
        root: of the engines of all bundles.
        static: see `engines.only`.

    Raises:
        MemoryProbeError: the process failed.
    """
    before = device.memory().used
    more = ["--engines", str(root), *(["--static-levels"] if static else [])]
    return int(answer("tokenfold.bench.engine_memory", folder, *more)) - before


def main(arguments: Sequence[str] | None = None) -> int:
    """The watched process: load them, print what is taken."""
    parser = argparse.ArgumentParser(prog="python -m tokenfold.bench.engine_memory")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engines", type=Path, required=True)
    parser.add_argument("--static-levels", action="store_true")
    options = parser.parse_args(arguments)
    bundle = Bundle.open(options.bundle)
    own = variant.load()
    registered = plugins.register(own)
    files = EngineStore(options.engines, bundle)
    wanted = engines.only(bundle, options.engines, static=options.static_levels)
    with ExitStack() as held:
        stream = free_on_exit(Stream(), held)
        # One for each graph, as in a session: its engines work in the same memory.
        for _, origins in groupby(wanted, key=lambda one: one.graph):
            loads = [Engine(own, registered, one, files.read(one)) for one in origins]
            free_on_exit(EngineRunner(loads, stream), held)
        print(json.dumps(device.memory().used))
    return 0


if __name__ == "__main__":
    sys.exit(main())
