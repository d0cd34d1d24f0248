"""Engines of TensorRT for the GPU that is here."""

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
    """Of the engines of all tests; it goes with the process."""
    found = Path(mkdtemp(prefix="tokenfold-engines-"))
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def built(bundle: Bundle, *, root: Path | None = None, static: bool = False) -> Path:
    """Build what is missing of a bundle's engines; returns the folder of all bundles'."""
    root = root or folder()
    own = variant.load()
    registered = plugins.register(own)
    wanted = engine_specs(bundle, target.current_target(own, registered), static=static)
    build(bundle, root, own, registered, wanted)
    return root
