"""Stand-in for `tokenfold build` without TensorRT: writes engine files that are never loaded.

Run it as a file: `python -m` would look for it in the current folder of the tests.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.tensorrt.spec import EngineError, engine_specs
from tokenfold.runtime.tensorrt.store import EngineStore
from tokenfold.runtime.tensorrt.target import BuildTarget

COMMAND = (sys.executable, __file__)
TARGET = BuildTarget(tensorrt="tensorrt 11.4.0", gpu="Standing In sm_90", plugins="ab" * 32)
BYTES, STATIC_BYTES = 3_000_000, 2_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engines", type=Path)
    parser.add_argument("--static-levels", action="store_true")
    parser.add_argument("--precision")
    parser.add_argument("--json", action="store_true", required=True)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    store = EngineStore(options.engines, bundle)
    specs = engine_specs(
        bundle,
        TARGET,
        precision="bf16" if options.precision == "bf16" else None,
        static=options.static_levels,
    )
    print("Some library prints to stdout")
    for number, spec in enumerate(specs, 1):
        try:
            store.find(spec)
        except EngineError:
            store.write(spec, bytes(BYTES if spec.plan is None else STATIC_BYTES))
        line = {"engine": spec.graph, "done": number / len(specs), "phase": "Built"}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
