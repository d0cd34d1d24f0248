"""From a checkpoint to a verified bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import onnx
import onnxruntime
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from export import graph as graphs
from export import quality
from export.bundle import (
    MODEL,
    PROFILE,
    Bundle,
    Level,
    LevelProfile,
    Manifest,
    Name,
    Precision,
    Profile,
    Quality,
    Share,
    stored_files,
    write_document,
    write_manifest,
    writing,
)
from export.machine import machine, software
from export.quantise import quantise
from export.runtime import Session
from export.verify import Images, normalised, random_images, verify
from models.checkpoints.checkpoint import Checkpoint
from models.preprocess import Pixels, Preprocess
from models.reduction.matcher import Matcher
from models.reduction.pitome import PiToMe, margin
from models.reduction.schedule import DEFAULT_LEVELS, Ramp, flops_ratio, linear, plan_for
from models.reduction.tome import ToMe
from models.reduction.workload import Method, Plan, Shape, Workload
from models.vit import VisionConfig

VERIFIED_IMAGES = 8
Stage = Callable[[str, int], Callable[[], None]]
"""Starts a named stage of so many steps, and returns what to call after each step."""


Amount = Share | Ramp | tuple[int, ...]
"""How much a level reduces: a fraction of the FLOPs, ToMe's (r, inflect), or the plan itself."""


class Recipe(BaseModel):
    """What to make of a checkpoint.

    Attributes:
        name: what the service will call the model.
        levels: name -> how much to reduce.
        default_level: by default `balanced` where there is one, else the first.
        proportional: whether attention counts token sizes; off for MAE trained without ToMe.
        images: a folder or zip of images to verify and measure on; folder names are labels.
        threads: that measure side by side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    method: Method = "tome"
    precision: Precision = "fp32"
    levels: dict[Name, Amount] = Field(default=dict(DEFAULT_LEVELS), min_length=1)
    default_level: Name | None = None
    shape: Shape = "constant"
    proportional: bool = True
    images: Path | None = None
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_level is not None and self.default_level not in self.levels:
            known = ", ".join(self.levels)
            raise ValueError(f"the default level {self.default_level!r} is not among {known}")
        return self

    @property
    def default(self) -> str:
        """The level for requests that choose none."""
        chosen = "balanced" if "balanced" in self.levels else next(iter(self.levels))
        return self.default_level or chosen


def matchers(method: Method, config: VisionConfig) -> list[Matcher] | None:
    """One matcher per layer; None where nothing is reduced."""
    if method == "none":
        return None
    if method == "tome":
        return [ToMe(config.class_token, config.distill_token)] * config.depth
    return [PiToMe(margin(layer, config.depth), config.protected) for layer in range(config.depth)]


def plan_levels(workload: Workload, recipe: Recipe) -> dict[str, Level]:
    """The requested levels with their plans, from the least reduced to the most.

    Raises:
        PlanError: an explicit plan does not fit the network.
    """
    levels = {}
    for name, amount in recipe.levels.items():
        plan = _plan(workload, amount, recipe.shape)
        ratio = flops_ratio(workload, plan)
        levels[name] = Level(
            reduction=amount if isinstance(amount, float) else 1 - ratio,
            plan=plan,
            flops_ratio=ratio,
            tokens_out=workload.widths(plan)[-1],
        )
    return dict(sorted(levels.items(), key=lambda level: -level[1].flops_ratio))


def _plan(workload: Workload, amount: Amount, shape: Shape) -> Plan:
    if isinstance(amount, float):
        return plan_for(workload, amount, shape)
    asked = linear(*amount, workload.depth) if isinstance(amount, Ramp) else amount
    counts = workload.widths(asked)
    return tuple(before - after for before, after in pairwise(counts))


def export_bundle(
    checkpoint: Checkpoint,
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
    """
    config = checkpoint.model.config
    workload = config.workload(recipe.method)
    levels = plan_levels(workload, recipe)
    own = matchers(recipe.method, config)
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
            with tempfile.TemporaryDirectory(dir=folder) as wide:
                for file in folder.glob(f"{MODEL}*"):
                    file.rename(Path(wide) / file.name)
                quantise(Path(wide) / MODEL, folder / MODEL)
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
            default_level=recipe.default,
            versions=_versions(),
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
            _write_profile(folder, native, qualities)
        files = stored_files(folder)
        write_manifest(folder, manifest.model_copy(update={"deviation": deviation, "files": files}))
    return Bundle.open(out)


def _versions() -> dict[str, str]:
    return {
        "tokenfold": version("tokenfold"),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


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


def _write_profile(folder: Path, session: Session, qualities: Mapping[str, Quality]) -> None:
    profile = Profile(
        measured=date.today(),
        machine=machine(),
        runtime=software(native=session.native),
        levels={
            name: LevelProfile(quality={"classify": found}) for name, found in qualities.items()
        },
    )
    write_document(folder / PROFILE, profile)
