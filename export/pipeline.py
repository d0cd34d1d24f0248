"""From a checkpoint to a verified bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Self

import numpy as np
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
    Share,
    stored_files,
    write_document,
    write_manifest,
    writing,
)
from export.machine import machine, software
from export.quantise import quantise
from export.runtime import Session
from export.verify import Images, random_images, verify
from models.checkpoints.checkpoint import Checkpoint
from models.reduction.matcher import Matcher
from models.reduction.pitome import PiToMe, margin
from models.reduction.schedule import (
    DEFAULT_LEVELS,
    Method,
    Shape,
    Workload,
    flops_ratio,
    plan_for,
    widths,
)
from models.reduction.tome import ToMe
from models.vit import VisionConfig

VERIFIED_IMAGES = 8
PACKAGES = ("tokenfold", "torch", "onnx", "onnxruntime")
Stage = Callable[[str, int], Callable[[], None]]
"""Starts a named stage of so many steps, and returns what to call after each step."""


class Recipe(BaseModel):
    """What to make of a checkpoint.

    Attributes:
        name: what the service will call the model.
        levels: name -> requested reduction, 0 to 1.
        default_level: by default `balanced` where there is one, else the first.
        proportional: whether attention counts token sizes; off for MAE trained without ToMe.
        images: a folder or zip of images to verify and measure on; folder names are labels.
        threads: that measure side by side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    method: Method = "tome"
    precision: Precision = "fp32"
    levels: dict[Name, Share] = Field(default=DEFAULT_LEVELS, min_length=1)
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
    """The requested levels with their plans, from the least reduced to the most."""
    levels = {}
    for name, reduction in sorted(recipe.levels.items(), key=lambda level: level[1]):
        plan = plan_for(workload, reduction, recipe.shape)
        levels[name] = Level(
            reduction=reduction,
            plan=plan,
            flops_ratio=flops_ratio(workload, plan),
            tokens_out=widths(workload, plan)[-1],
        )
    return levels


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
    samples = (
        []
        if recipe.images is None
        else quality.read(recipe.images, checkpoint.preprocess, checkpoint.labels)
    )
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
            wide = (folder / MODEL).rename(folder / "wide.onnx")
            quantise(wide, folder / MODEL)
            wide.unlink()
            step()

        manifest = Manifest(
            name=recipe.name,
            source=source,
            precision=recipe.precision,
            workload=workload,
            shape=recipe.shape,
            proportional=recipe.proportional,
            preprocess=checkpoint.preprocess,
            labels=checkpoint.labels,
            levels=levels,
            default_level=recipe.default,
            versions={package: version(package) for package in PACKAGES},
            files=stored_files(folder),
        )
        write_manifest(folder, manifest)
        bundle = Bundle.open(folder)
        images = _verification_images(samples, checkpoint.preprocess.size)
        deviation = {}
        native = Session(bundle)
        # The same file has to be right on either kind of ops.
        sessions = [native, Session(bundle, native=False)] if native.native else [native]
        step = stage("verify", len(levels) * len(sessions))
        for session in sessions:
            deviation = verify(
                checkpoint,
                own,
                recipe.proportional,
                recipe.precision,
                session,
                levels,
                images,
                step,
            )
        if samples:
            step = stage("measure", len(samples) * len(levels))
            _measure(folder, native, levels, samples, recipe.threads, step)
        files = stored_files(folder)
        write_manifest(folder, manifest.model_copy(update={"deviation": deviation, "files": files}))
    return Bundle.open(out)


def _verification_images(samples: Sequence[quality.Sample], size: tuple[int, int]) -> Images:
    drawn = random_images(size, VERIFIED_IMAGES)
    if not samples:
        return drawn
    spread = samples[:: max(1, len(samples) // VERIFIED_IMAGES)][:VERIFIED_IMAGES]
    return np.concatenate([drawn, np.stack([sample.pixels for sample in spread])])


def _measure(
    folder: Path,
    session: Session,
    levels: Mapping[str, Level],
    samples: Sequence[quality.Sample],
    threads: int,
    step: Callable[[], None],
) -> None:
    found = quality.measure(session, levels, samples, threads=threads, progress=step)
    profile = Profile(
        measured=date.today(),
        machine=machine(),
        runtime=software(native=session.native),
        levels={name: LevelProfile(quality=value) for name, value in found.items()},
    )
    write_document(folder / PROFILE, profile)
