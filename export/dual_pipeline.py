"""From a checkpoint of a dual encoder to a verified bundle."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import IMAGE, TEXT, TOKENIZER, Manifest, Similarity, TextSpec
from tokenfold.bundle.profile import PROFILE
from tokenfold.bundle.writing import stored_files, write_document, write_manifest, writing
from tokenfold.export.dual_graph import ImageGraph, TextGraph
from tokenfold.export.dual_quality import Scene, measure
from tokenfold.export.dual_reference import Reference
from tokenfold.export.dual_verify import verified_texts, verify
from tokenfold.export.matchers import matchers
from tokenfold.export.quality import profile
from tokenfold.export.quantise import replace
from tokenfold.export.recipe import Recipe, Stage, plan_levels
from tokenfold.export.verify import verified_images
from tokenfold.export.versions import versions
from tokenfold.models.checkpoints.checkpoint import DualCheckpoint
from tokenfold.models.networks.dual import DualEncoder
from tokenfold.runtime.dual import DualSession


def similarity(model: DualEncoder, template: str) -> Similarity:
    """How the network's vectors compare."""
    return Similarity(
        width=model.config.width,
        scale=float(model.logit_scale.detach().exp()),
        bias=float(model.logit_bias.detach()),
        scores=model.config.scores,
        template=template,
    )


def export_bundle(
    checkpoint: DualCheckpoint, source: str, out: Path, recipe: Recipe, stage: Stage
) -> Bundle:
    """Write a bundle to `out`; see `tokenfold.export.pipeline.export_bundle`."""
    method = recipe.image_method
    model, preprocess, text = checkpoint.model, checkpoint.preprocess, checkpoint.text
    workload = model.config.workload(method)
    levels = plan_levels(workload, recipe)
    default = recipe.default(levels)
    scene = None if recipe.images is None else Scene.read(recipe.images)
    with writing(out) as folder:
        step = stage("export the graphs", 2)
        dtype = torch.float16 if recipe.precision == "fp16" else torch.float32
        own = matchers(method, model.config.image)
        ImageGraph(model, preprocess, own, recipe.proportional, dtype).write(folder / IMAGE)
        step()
        TextGraph(model, dtype).write(folder / TEXT)
        step()
        if recipe.precision == "int8":
            step = stage("quantise", 2)
            for name in (IMAGE, TEXT):
                replace(folder / name)
                step()
        text.save(folder / TOKENIZER)

        manifest = Manifest(
            name=recipe.name,
            source=source,
            precision=recipe.precision,
            workload=workload,
            shape=recipe.shape,
            proportional=recipe.proportional,
            text=TextSpec(most_tokens=text.most_tokens, padding=text.padding),
            similarity=similarity(model, checkpoint.template),
            preprocess=preprocess,
            tasks={"embed": ()},
            levels=levels,
            default_level=default,
            versions=versions(),
            files=stored_files(folder),
        )
        write_manifest(folder, manifest)
        bundle = Bundle.open(folder)
        native = DualSession(bundle)
        # The same files have to be right on either kind of ops.
        sessions = [native, DualSession(bundle, native=False)] if native.native else [native]
        reference = Reference(checkpoint, method, proportional=recipe.proportional)
        images = verified_images(scene.photos if scene else None, preprocess)
        step = stage("verify", len(levels))
        deviation = verify(manifest, reference, sessions, images, verified_texts(text), step)
        if scene is not None:
            step = stage("measure", len(scene.photos))
            found = measure(
                manifest,
                native,
                scene,
                text,
                unreduced=reference,
                threads=recipe.threads,
                progress=step,
            )
            write_document(folder / PROFILE, profile(found, native=native.native))
        files = stored_files(folder)
        write_manifest(folder, manifest.model_copy(update={"deviation": deviation, "files": files}))
    return Bundle.open(out)
