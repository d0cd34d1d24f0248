"""What the bench found, kept in the bundle: its profile, from which the service picks levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date

from tokenfold.bench.measure import measure_rounds, slice_count
from tokenfold.bench.report import Report
from tokenfold.bench.subjects import Graphs, graph_subject, random_inputs
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.profile import Latency, LevelProfile, Profile
from tokenfold.bundle.writing import write_profile

LARGER = (2, 4, 8)
"""Batches whose latency is measured beside that of one image."""


def curves(
    bundle: Bundle,
    graphs: Graphs,
    report: Report,
    stage: Callable[[str, int], Callable[[], None]],
) -> dict[str, tuple[Latency, ...]]:
    """Latency as a function of batch size, for every level; that of one image is in the report."""
    subjects = {
        (name, batch): graph_subject(graphs, inputs, level.plan, report.threads, batch)
        for batch in LARGER
        for inputs in [random_inputs(bundle, batch)]
        for name, level in bundle.manifest.levels.items()
    }
    # How latency grows needs no more.
    rounds = math.ceil(report.rounds / 3)
    step = stage("larger batches", slice_count(len(subjects), rounds))
    found = measure_rounds(subjects, rounds=rounds, seconds=report.seconds, progress=step)
    single = {
        row.level: Latency(batch=1, p50_ms=row.p50_ms, p99_ms=row.p99_ms) for row in report.levels
    }
    return {
        name: (
            single[name],
            *(
                Latency(
                    batch=batch,
                    p50_ms=found[name, batch].percentile_ms(50),
                    p99_ms=found[name, batch].percentile_ms(99),
                )
                for batch in LARGER
            ),
        )
        for name in bundle.manifest.levels
    }


def save(bundle: Bundle, report: Report, latency: dict[str, tuple[Latency, ...]]) -> None:
    """Write the bundle's profile. The quality in it stays, all else is replaced."""
    known = bundle.profile.levels if bundle.profile is not None else {}
    levels = {
        row.level: LevelProfile(
            quality=known[row.level].quality if row.level in known else {},
            neighbours=known[row.level].neighbours if row.level in known else {},
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
