"""From a checkpoint to a verified bundle."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import MODEL, Manifest
from tokenfold.bundle.preprocess import Pixels
from tokenfold.bundle.profile import PROFILE, LevelProfile
from tokenfold.bundle.writing import stored_files, write_document, write_manifest, writing
from tokenfold.export import dual_pipeline, pair_pipeline, quality
from tokenfold.export import graph as graphs
from tokenfold.export.matchers import matchers
from tokenfold.export.quantise import replace
from tokenfold.export.recipe import Recipe, Stage, plan_levels
from tokenfold.export.verify import normalised, verified_images, verify
from tokenfold.export.versions import versions
from tokenfold.models.checkpoints.checkpoint import (
    AnyCheckpoint,
    Checkpoint,
    DualCheckpoint,
    PairCheckpoint,
)
from tokenfold.runtime.session import Session


def export_bundle(
    checkpoint: AnyCheckpoint,
    source: str,
    out: Path,
    recipe: Recipe,
    stage: Stage = lambda _name, _steps: lambda: None,
) -> Bundle:
    """Write a bundle to `out`, whole or not at all; what stood there is replaced.

    Args:
        source: how the checkpoint was named, for the manifest.
        stage: told of each stage and step, for a progress bar.

    Raises:
        VerificationError: the graph disagrees with PyTorch; nothing is written.
        DataError: the images cannot be read; nothing is written.
        RecipeError, PlanError: the recipe does not fit the network.
    """
    if isinstance(checkpoint, PairCheckpoint):
        return pair_pipeline.export_bundle(checkpoint, source, out, recipe, stage)
    if isinstance(checkpoint, DualCheckpoint):
        return dual_pipeline.export_bundle(checkpoint, source, out, recipe, stage)
    method = recipe.image_method
    config = checkpoint.model.config
    own = matchers(method, config)
    workload = config.workload(method)
    levels = plan_levels(workload, recipe)
    default = recipe.default(levels)
    photos = None if recipe.images is None else quality.Photos(recipe.images, checkpoint.labels)
    with writing(out) as folder:
        step = stage("export the graph", 1)
        dtype = torch.float16 if recipe.precision == "fp16" else torch.float32
        graph = graphs.Graph(
            checkpoint.model, checkpoint.preprocess, own, recipe.proportional, dtype
        )
        graphs.export(graph, folder / MODEL)
        step()
        if recipe.precision == "int8":
            step = stage("quantise", 1)
            replace(folder / MODEL)
            step()

        manifest = Manifest(
            name=recipe.name,
            source=source,
            precision=recipe.precision,
            workload=workload,
            shape=recipe.shape,
            proportional=recipe.proportional,
            preprocess=checkpoint.preprocess,
            tasks={"classify": checkpoint.labels},
            levels=levels,
            default_level=default,
            versions=versions(),
            files=stored_files(folder),
        )
        write_manifest(folder, manifest)
        bundle = Bundle.open(folder)
        images = verified_images(photos, checkpoint.preprocess)
        deviation = dict.fromkeys(levels, 0.0)
        native = Session(bundle)
        # The same file has to be right on either kind of ops.
        sessions = [native, Session(bundle, native=False)] if native.native else [native]
        step = stage("verify", len(levels) * len(sessions))
        for session in sessions:
            found = verify(
                checkpoint,
                own,
                recipe.proportional,
                recipe.precision,
                session,
                levels,
                images,
                step,
            )
            deviation = {name: max(deviation[name], found[name]) for name in levels}
        if photos is not None:
            step = stage("measure", len(photos))
            qualities = quality.measure(
                native,
                levels,
                photos,
                checkpoint.preprocess,
                unreduced=lambda pixels: _answer(checkpoint, pixels),
                threads=recipe.threads,
                progress=step,
            )
            write_document(
                folder / PROFILE,
                quality.profile(
                    {name: LevelProfile(quality={"classify": q}) for name, q in qualities.items()},
                    native=native.native,
                ),
            )
        files = stored_files(folder)
        write_manifest(folder, manifest.model_copy(update={"deviation": deviation, "files": files}))
    return Bundle.open(out)


def _answer(checkpoint: Checkpoint, pixels: Pixels) -> int:
    with torch.inference_mode():
        logits = checkpoint.model(normalised(pixels[None], checkpoint.preprocess)).logits
    return int(logits[0].argmax())
