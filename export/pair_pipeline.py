"""From a checkpoint of a network that sees an image with a text to a verified bundle."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import JOINT, TOKENIZER, VISION, Manifest, TextSpec
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.profile import PROFILE, LevelProfile
from tokenfold.bundle.writing import stored_files, write_document, write_manifest, writing
from tokenfold.export import pair_quality
from tokenfold.export.pair_graph import JointGraph, VisionGraph
from tokenfold.export.pair_reference import Reference
from tokenfold.export.pair_verify import cases, verify
from tokenfold.export.quality import profile
from tokenfold.export.quantise import replace
from tokenfold.export.recipe import Recipe, RecipeError, Stage, plan_levels
from tokenfold.export.versions import versions
from tokenfold.models.checkpoints.checkpoint import PairCheckpoint
from tokenfold.models.networks.meter import Meter, merging_tower
from tokenfold.models.networks.vilt import Vilt
from tokenfold.runtime.pair import PairSession


def pair_workload(checkpoint: PairCheckpoint, recipe: Recipe) -> PairWorkload:
    """The network with its longest text, as the schedule is to see it.

    Raises:
        RecipeError: the method, layers or rates are not for such a network.
    """
    method = recipe.method or "pumer"
    if method == "pitome":
        raise RecipeError("with texts the methods are none, tome and pumer, not pitome")
    if not recipe.proportional:
        raise RecipeError("with texts, --plain turns sizes off, in attention and in merging")
    try:
        return checkpoint.model.config.workload(
            method, text=checkpoint.text.most_tokens, layers=recipe.layers, rates=recipe.rates
        )
    except ValidationError as error:
        raise RecipeError("; ".join(problem["msg"] for problem in error.errors())) from error


def export_bundle(
    checkpoint: PairCheckpoint, source: str, out: Path, recipe: Recipe, stage: Stage
) -> Bundle:
    """Write a bundle to `out`; see `tokenfold.export.pipeline.export_bundle`."""
    if recipe.tower:
        if not isinstance(checkpoint.model, Meter):
            raise RecipeError("only METER has an image tower of its own that ToMe could reduce")
        checkpoint = checkpoint._replace(model=merging_tower(checkpoint.model, recipe.tower))
    workload = pair_workload(checkpoint, recipe)
    levels = plan_levels(workload, recipe)
    weighted = checkpoint.weighted if recipe.weighted is None else recipe.weighted
    items = None
    if recipe.images is not None:
        items = pair_quality.Items(recipe.images, checkpoint.labels)
    default = recipe.default(levels)
    with writing(out) as folder:
        step = stage("export the graphs", 2)
        dtype = torch.float16 if recipe.precision == "fp16" else torch.float32
        model, preprocess = checkpoint.model, checkpoint.preprocess
        VisionGraph(model, preprocess, dtype).write(folder / VISION)
        step()
        JointGraph(model, workload, weighted=weighted, dtype=dtype).write(folder / JOINT)
        step()
        if recipe.precision == "int8":
            step = stage("quantise", 2)
            for name in (VISION, JOINT):
                replace(folder / name)
                step()
        checkpoint.text.save(folder / TOKENIZER)

        manifest = Manifest(
            name=recipe.name,
            source=source,
            precision=recipe.precision,
            workload=workload,
            shape=recipe.shape,
            weighted=weighted,
            text=TextSpec(most_tokens=checkpoint.text.most_tokens),
            preprocess=preprocess,
            tasks=dict(checkpoint.labels),
            scores={
                task: head.scores
                for task, head in model.config.heads.items()
                if head.scores != "softmax"
            },
            levels=levels,
            default_level=default,
            versions=versions(),
            files=stored_files(folder),
        )
        write_manifest(folder, manifest)
        bundle = Bundle.open(folder)
        native = PairSession(bundle)
        # The same files have to be right on either kind of ops.
        sessions = [native, PairSession(bundle, native=False)] if native.native else [native]
        reference = Reference(checkpoint, workload, weighted=weighted)
        patch = model.config.patch_size if isinstance(model, Vilt) else None
        step = stage("verify", len(levels))
        asked = cases(checkpoint.text, model.config.image_size, patch=patch)
        deviation = verify(manifest, reference, sessions, asked, step)
        if items is not None:
            step = stage("measure", len(items))
            found = pair_quality.measure(
                manifest,
                native,
                items,
                checkpoint.text,
                unreduced=reference,
                threads=recipe.threads,
                progress=step,
            )
            measured = {name: LevelProfile(quality=own) for name, own in found.items()}
            write_document(folder / PROFILE, profile(measured, native=native.native))
        files = stored_files(folder)
        write_manifest(folder, manifest.model_copy(update={"deviation": deviation, "files": files}))
    return Bundle.open(out)
