"""From a checkpoint to a verified bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from export import graph as graphs
from export import pair_pipeline, quality
from export.bundle import MODEL, PROFILE, Bundle, Manifest
from export.quantise import replace
from export.recipe import AnyMethod, Recipe, RecipeError, Stage, plan_levels
from export.runtime import Session
from export.verify import Images, normalised, random_images, verify
from export.versions import versions
from export.writing import stored_files, write_document, write_manifest, writing
from models.checkpoints.checkpoint import Checkpoint, PairCheckpoint
from models.preprocess import Pixels, Preprocess
from models.reduction.matcher import Matcher
from models.reduction.pitome import PiToMe, margin
from models.reduction.tome import ToMe
from models.vit import VisionConfig

VERIFIED_IMAGES = 8


def matchers(method: AnyMethod, config: VisionConfig) -> list[Matcher] | None:
    """One matcher per layer; None where nothing is reduced."""
    if method == "none":
        return None
    if method == "pumer":
        raise RecipeError("PuMer reduces an image with a text; this network sees images alone")
    if method == "tome":
        return [ToMe(config.class_token, config.distill_token)] * config.depth
    return [PiToMe(margin(layer, config.depth), config.protected) for layer in range(config.depth)]


def export_bundle(
    checkpoint: Checkpoint | PairCheckpoint,
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
    method = recipe.method or "tome"
    if recipe.layers or recipe.rates or recipe.weighted is not None or recipe.tower:
        raise RecipeError("layers, rates, weights and a tower are for networks that see texts")
    config = checkpoint.model.config
    own = matchers(method, config)
    assert method != "pumer"
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
        images = _verification_images(photos, checkpoint.preprocess)
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
                    {name: {"classify": found} for name, found in qualities.items()},
                    native=native.native,
                ),
            )
        files = stored_files(folder)
        write_manifest(folder, manifest.model_copy(update={"deviation": deviation, "files": files}))
    return Bundle.open(out)


def _verification_images(photos: quality.Photos | None, preprocess: Preprocess) -> Images:
    drawn = random_images(preprocess.size, VERIFIED_IMAGES)
    if photos is None:
        return drawn
    spread = range(0, len(photos), max(1, len(photos) // VERIFIED_IMAGES))[:VERIFIED_IMAGES]
    return np.concatenate([drawn, np.stack([photos.pixels(at, preprocess) for at in spread])])


def _answer(checkpoint: Checkpoint, pixels: Pixels) -> int:
    with torch.inference_mode():
        logits = checkpoint.model(normalised(pixels[None], checkpoint.preprocess)).logits
    return int(logits[0].argmax())
