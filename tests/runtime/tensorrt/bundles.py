"""Tiny bundles of every kind, exported once per test run, because exporting is slow."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests import tiny
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Precision
from tokenfold.export.pipeline import export_bundle
from tokenfold.export.recipe import Recipe
from tokenfold.models.checkpoints.checkpoint import AnyCheckpoint

KINDS: dict[str, Callable[[], AnyCheckpoint]] = {
    "vit": tiny.checkpoint,
    "pitome": tiny.checkpoint,
    "vilt": tiny.pair_checkpoint,
    "meter": tiny.meter_checkpoint,
    "clip": tiny.dual_checkpoint,
    "siglip": lambda: tiny.dual_checkpoint(siglip=True),
}

LEVELS = {"exact": 0.0, "some": 0.2, "half": 0.4}

folder: Path | None = None
"""Folder of the bundles, which all worker processes of a test run share. Set by conftest.py."""


@cache
def bundle(kind: str, precision: Precision) -> Bundle:
    """Return a bundle of a kind of `KINDS`. Tests share it, so they must not change it."""
    options: dict[str, Any] = {"method": "pitome"} if kind == "pitome" else {}
    recipe = Recipe(
        name=f"{kind}-{precision}",
        precision=precision,
        levels=LEVELS,
        default_level="some",
        **options,
    )
    assert folder is not None
    out = folder / recipe.name
    with (folder / f"{recipe.name}.lock").open("w") as lock:
        # Locked until the file is closed. The second process finds the exported bundle.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return Bundle.open(out)
        return export_bundle(KINDS[kind](), kind, out, recipe)
