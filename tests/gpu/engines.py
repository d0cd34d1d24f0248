"""TensorRT engines for the GPU of this machine."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.tensorrt import plugins, runtime, target, variant
from tokenfold.runtime.tensorrt.command import build
from tokenfold.runtime.tensorrt.spec import engine_specs

MISSING = runtime.missing()


@cache
def folder() -> Path:
    """Return the folder of the engines of all tests, deleted when the process ends."""
    path = Path(mkdtemp(prefix="tokenfold-engines-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def build_engines(bundle: Bundle, *, root: Path | None = None, static: bool = False) -> Path:
    """Build a bundle's missing engines, and return the folder of all bundles' engines."""
    root = root or folder()
    loaded_variant = variant.load()
    library = plugins.register(loaded_variant)
    specs = engine_specs(bundle, target.current_target(loaded_variant, library), static=static)
    build(bundle, root, loaded_variant, library, specs)
    return root
