"""Engines of TensorRT for the GPU that is here."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.tensorrt import flavour, plugins, runtime, target
from tokenfold.runtime.tensorrt.command import build
from tokenfold.runtime.tensorrt.origin import origins

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
    own = flavour.load()
    registered = plugins.registered(own)
    wanted = origins(bundle, target.here(own, registered), static=static)
    build(bundle, root, own, registered, wanted)
    return root
