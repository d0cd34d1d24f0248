"""Tiny bundles of every kind, exported once a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from export.bundle import Bundle
from export.manifest import Precision
from export.pipeline import export_bundle
from export.recipe import Recipe
from models.checkpoints.checkpoint import AnyCheckpoint
from tests import tiny

KINDS: dict[str, Callable[[], AnyCheckpoint]] = {
    "vit": tiny.checkpoint,
    "pitome": tiny.checkpoint,
    "vilt": tiny.pair_checkpoint,
    "meter": tiny.meter_checkpoint,
    "clip": tiny.dual_checkpoint,
    "siglip": lambda: tiny.dual_checkpoint(siglip=True),
}

LEVELS = {"exact": 0.0, "some": 0.2, "half": 0.4}


@cache
def bundle(kind: str, precision: Precision) -> Bundle:
    """A bundle of a kind, one of `KINDS`, in a folder that goes with the process."""
    options: dict[str, Any] = {"method": "pitome"} if kind == "pitome" else {}
    recipe = Recipe(
        name=f"{kind}-{precision}",
        precision=precision,
        levels=LEVELS,
        default_level="some",
        **options,
    )
    return export_bundle(KINDS[kind](), kind, _folder() / recipe.name, recipe)


@cache
def _folder() -> Path:
    return Path(mkdtemp(prefix="tokenfold-bundles-"))
