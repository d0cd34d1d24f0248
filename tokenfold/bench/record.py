"""Save the bench's figures as the bundle's profile, from which the service chooses levels."""

from __future__ import annotations

import math
from datetime import date

from tokenfold.bench.measure import measure_rounds, slice_count
from tokenfold.bench.report import Report
from tokenfold.bench.stages import Stage
from tokenfold.bench.subjects import Graphs, graph_subject, random_inputs
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.profile import Latency, LevelProfile, Profile
from tokenfold.bundle.writing import write_profile

LARGER_BATCHES = (2, 4, 8)
"""Batch sizes whose latency is measured in addition to that of a single image."""


def curves(
    bundle: Bundle, graphs: Graphs, report: Report, stage: Stage
) -> dict[str, tuple[Latency, ...]]:
    """Measure the latency of every level by batch size; the report already has batch size 1."""
    subjects = {
        (name, batch): graph_subject(graphs, inputs, level.plan, report.threads, batch)
        for batch in LARGER_BATCHES
        for inputs in [random_inputs(bundle, batch)]
        for name, level in bundle.manifest.levels.items()
    }
    # A third of the rounds is enough for the growth of latency.
    rounds = math.ceil(report.rounds / 3)
    step = stage("larger batches", slice_count(len(subjects), rounds))
    measurements = measure_rounds(subjects, rounds=rounds, seconds=report.seconds, progress=step)
    single_image = {
        row.level: Latency(batch=1, p50_ms=row.p50_ms, p99_ms=row.p99_ms) for row in report.levels
    }
    return {
        name: (
            single_image[name],
            *(
                Latency(
                    batch=batch,
                    p50_ms=measurements[name, batch].percentile_ms(50),
                    p99_ms=measurements[name, batch].percentile_ms(99),
                )
                for batch in LARGER_BATCHES
            ),
        )
        for name in bundle.manifest.levels
    }


def save(bundle: Bundle, report: Report, latency: dict[str, tuple[Latency, ...]]) -> None:
    """Write the bundle's profile: keep the quality figures and replace everything else."""
    old_levels = bundle.profile.levels if bundle.profile is not None else {}
    levels = {
        row.level: LevelProfile(
            quality=old_levels[row.level].quality if row.level in old_levels else {},
            neighbours=old_levels[row.level].neighbours if row.level in old_levels else {},
            latency=latency[row.level],
            images_per_second=row.images_per_second,
            peak_memory_mb=row.peak_memory_mb,
        )
        for row in report.levels
        if row.level in bundle.manifest.levels
    }
    profile = Profile(
        measured=date.today(),
        machine=report.machine,
        runtime=report.runtime,
        texts_per_second=None if report.texts is None else report.texts.texts_per_second,
        levels=levels,
    )
    write_profile(bundle.folder, profile)
