"""Summaries of bundles, shown by `tokenfold inspect`."""

from __future__ import annotations

from datetime import date
from itertools import groupby

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.document import Document
from tokenfold.bundle.manifest import Kind, Precision, TextSpec
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.profile import Latency, Quality
from tokenfold.bundle.tasks import Task
from tokenfold.bundle.workload import Plan


class Measurement(Document):
    """Date, machine and runtime of the profile's measurements."""

    measured: date
    machine: str
    runtime: str


class LevelSummary(Document):
    """One level of a bundle.

    Attributes:
        reduction: requested fraction of FLOPs to remove, 0 to 1.
        flops: multiply-accumulates of one input.
        flops_ratio: FLOPs relative to the unreduced network.
        tokens_out: tokens after the last layer.
        deviation: largest difference from PyTorch at export; None if it was not recorded.
        quality: measured quality by task.
        latency: measured latency by batch size.
    """

    name: str
    reduction: float
    plan: Plan
    flops: int
    flops_ratio: float
    tokens_out: int
    deviation: float | None
    quality: dict[Task, Quality]
    latency: tuple[Latency, ...]
    images_per_second: float | None
    peak_memory_mb: float | None


class Summary(Document):
    """Description of a bundle for people and programs.

    Attributes:
        tasks: number of labels by task; 0 for tasks without labels.
        tokens_in: tokens before the first layer.
        files: size of each file by name, bytes.
        measurement: None for a bundle that was not measured.
    """

    name: str
    folder: str
    format: int
    kind: Kind
    method: str
    precision: Precision
    source: str
    tasks: dict[Task, int]
    preprocess: Preprocess
    text: TextSpec | None
    tokens_in: int
    default_level: str
    levels: tuple[LevelSummary, ...]
    files: dict[str, int]
    versions: dict[str, str]
    fingerprint: str
    measurement: Measurement | None


def summarise(bundle: Bundle) -> Summary:
    """Return the summary of a bundle."""
    manifest, profile = bundle.manifest, bundle.profile
    workload = manifest.workload
    levels = []
    for name, level in manifest.levels.items():
        measured = profile.levels.get(name) if profile else None
        levels.append(
            LevelSummary(
                name=name,
                reduction=level.reduction,
                plan=level.plan,
                flops=workload.flops(level.plan),
                flops_ratio=level.flops_ratio,
                tokens_out=level.tokens_out,
                deviation=manifest.deviation.get(name),
                quality=measured.quality if measured else {},
                latency=measured.latency if measured else (),
                images_per_second=measured.images_per_second if measured else None,
                peak_memory_mb=measured.peak_memory_mb if measured else None,
            )
        )
    measurement = None
    if profile is not None:
        measurement = Measurement(
            measured=profile.measured, machine=profile.machine, runtime=profile.runtime
        )
    return Summary(
        name=manifest.name,
        folder=str(bundle.folder),
        format=manifest.format,
        kind=manifest.kind,
        method=workload.method,
        precision=manifest.precision,
        source=manifest.source,
        tasks={task: len(labels) for task, labels in manifest.tasks.items()},
        preprocess=manifest.preprocess,
        text=manifest.text,
        tokens_in=workload.widths(workload.unreduced)[0],
        default_level=manifest.default_level,
        levels=tuple(levels),
        files={name: stored.bytes for name, stored in manifest.files.items()},
        versions=manifest.versions,
        fingerprint=manifest.fingerprint,
        measurement=measurement,
    )


def plan_text(plan: Plan) -> str:
    """Return a plan in short form, such as `4x3 3x5` for three counts of 4 and five of 3."""
    if not any(plan):
        return "-"
    runs = [(count, len(list(group))) for count, group in groupby(plan)]
    return " ".join(f"{count}x{length}" if length > 1 else str(count) for count, length in runs)
