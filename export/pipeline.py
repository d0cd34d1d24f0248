"""The export pipeline: from a checkpoint to a verified and measured bundle."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import GRAPHS, Manifest
from tokenfold.bundle.profile import PROFILE
from tokenfold.bundle.writing import stored_files, write_document, write_manifest, writing
from tokenfold.export import quantise
from tokenfold.export.families.classifier import ClassifierFamily
from tokenfold.export.families.dual import DualFamily
from tokenfold.export.families.family import Family
from tokenfold.export.families.pair import PairFamily
from tokenfold.export.levels import default_level, plan_levels
from tokenfold.export.quality.measuring import profile
from tokenfold.export.recipe import Recipe
from tokenfold.export.stages import Stage, Workers, no_stage
from tokenfold.export.verification.comparison import verify
from tokenfold.models.checkpoints.checkpoint import AnyCheckpoint, DualCheckpoint, PairCheckpoint
from tokenfold.models.checkpoints.load import load

PACKAGES = ("tokenfold", "torch", "onnx", "onnxruntime", "onnxruntime-gpu")
"""Packages whose versions the manifest records.

Only one ONNX Runtime can be installed, and a checkout that is not installed has no version.
"""


def export_source(source: str, out: Path, recipe: Recipe, stage: Stage = no_stage) -> Bundle:
    """Load a checkpoint and export it; see `export_bundle`.

    Args:
        source: names the checkpoint, see `tokenfold.models.checkpoints.load.load`.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    step = stage(f"load {source}", 1)
    checkpoint = load(source)
    step()
    return export_bundle(checkpoint, source, out, recipe, stage)


def export_bundle(
    checkpoint: AnyCheckpoint, source: str, out: Path, recipe: Recipe, stage: Stage = no_stage
) -> Bundle:
    """Export a checkpoint to a bundle at `out`, replacing an existing bundle.

    The bundle is written completely or not at all.

    Args:
        source: name of the checkpoint, for the manifest.
        stage: called at the start of each stage, for a progress bar.

    Raises:
        VerificationError: a graph disagrees with PyTorch.
        DataError: the images cannot be read.
        RecipeError, PlanError: the recipe does not fit the network.
        BundleError: `out` exists and is neither a bundle nor an empty folder.
    """
    family = family_of(checkpoint, recipe)
    levels = plan_levels(family.workload, recipe)
    default = default_level(recipe, levels)
    with writing(out) as folder:
        _write_graphs(family, folder, recipe, stage)
        manifest = Manifest(
            name=recipe.name,
            source=source,
            precision=recipe.precision,
            workload=family.workload,
            shape=recipe.shape,
            levels=levels,
            default_level=default,
            versions=versions(),
            files=stored_files(folder),
            **family.manifest_fields(),
        )
        # Sessions need no manifest on disk, so it is written only once, when it is complete.
        bundle = Bundle(folder, manifest, None)
        session = family.open_session(bundle)
        # The files must be right both with the compiled ops and with their portable bodies.
        portable = [family.open_session(bundle, native=False)] if session.native else []
        step = stage("verify", len(levels))
        deviation = verify(
            manifest,
            family.answers(manifest, family.reference),
            [family.answers(manifest, tested) for tested in (session, *portable)],
            step,
        )
        if family.samples:
            workers = Workers(recipe.threads, stage("measure", family.samples))
            measured = family.measure(manifest, session, workers)
            write_document(folder / PROFILE, profile(measured, native=session.native))
        complete = {"deviation": deviation, "files": stored_files(folder)}
        write_manifest(folder, manifest.model_copy(update=complete))
    return Bundle.open(out)


def family_of(checkpoint: AnyCheckpoint, recipe: Recipe) -> Family[Any, Any]:
    """Return the family of a checkpoint.

    Raises:
        RecipeError: the recipe does not fit the network.
        DataError: the recipe's images cannot be used.
    """
    if isinstance(checkpoint, PairCheckpoint):
        return PairFamily(checkpoint, recipe)
    if isinstance(checkpoint, DualCheckpoint):
        return DualFamily(checkpoint, recipe)
    return ClassifierFamily(checkpoint, recipe)


def _write_graphs(family: Family[Any, Any], folder: Path, recipe: Recipe, stage: Stage) -> None:
    """Write the graphs, in the recipe's precision, and the tokenizer."""
    names = GRAPHS[family.kind]
    step = stage("export graphs", len(names))
    for name, graph in family.graphs(
        torch.float16 if recipe.precision == "fp16" else torch.float32
    ):
        graph.write(folder / name)
        step()
    if recipe.precision == "int8":
        step = stage("quantise", len(names))
        for name in names:
            quantise.replace(folder / name)
            step()
    family.write_tokenizer(folder)


def versions() -> dict[str, str]:
    """Return the versions of `PACKAGES` that are installed."""
    installed = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
