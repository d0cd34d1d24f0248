"""The bench on the CPU: each level as the service runs it, compared with eager PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from tokenfold.bench.measure import Measurement, Subject, measure_rounds, slice_count
from tokenfold.bench.memory import Peak, measure_peak
from tokenfold.bench.options import Options
from tokenfold.bench.record import curves, save
from tokenfold.bench.report import (
    Comparison,
    Report,
    TextSpeed,
    TorchRow,
    level_memory,
    relative_speed,
    rows,
)
from tokenfold.bench.stages import BenchError, Stage, notice
from tokenfold.bench.subjects import (
    DualGraphs,
    Graphs,
    graph_subject,
    longest_texts,
    open_graphs,
    random_inputs,
    text_subject,
)
from tokenfold.bench.targets import PlanTarget, choose, shared_targets
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.machine import cores, machine, software

MAX_OTHER_LOAD = 10.0
"""Percentage of the processor used by other work, above which a notice warns about the figures."""


class ThreadLayout(NamedTuple):
    """Distribution of cores in PyTorch: concurrent callers, and threads inside each run."""

    callers: int
    threads_per_run: int

    @classmethod
    def candidates(cls, threads: int) -> list[ThreadLayout]:
        """Return one run on all cores, and one run per core; either may be the faster layout."""
        return sorted({cls(1, threads), cls(threads, 1)})

    def __str__(self) -> str:
        return f"{self.callers}x{self.threads_per_run}"


class SubjectKey(NamedTuple):
    """Identifies the subject of a slice of time.

    Attributes:
        runner: `this` bundle, the `other` bundle, `texts`, or a thread layout of PyTorch.
    """

    runner: str | ThreadLayout
    level: str


TEXTS = SubjectKey("texts", "")


def bench(options: Options, stage: Stage) -> Report:
    """Measure a bundle.

    Raises:
        BenchError, BundleError, TargetError, MemoryProbeError: the request cannot be measured.
    """
    folder = options.bundle.resolve()
    bundle = Bundle.open(folder)
    if options.save:
        _check_savable(options, folder)
    targets = choose(bundle.manifest, options.r, options.levels, options.rates)
    graphs = open_graphs(bundle)
    if not graphs.native:
        notice("the native ops are not built, so portable ops run: see `make plugins`")
    # Not the load average, which still counts work that has just ended, such as an export.
    other_load = psutil.cpu_percent(interval=0.5)
    if other_load > MAX_OTHER_LOAD:
        notice(f"other work uses {other_load:.0f} % of the processor, which disturbs the figures")

    layouts = ThreadLayout.candidates(options.threads) if options.torch else []
    subjects = _bundle_subjects("this", bundle, graphs, targets, options)
    if isinstance(graphs, DualGraphs):
        texts = longest_texts(bundle, options.images)
        subjects[TEXTS] = text_subject(graphs, texts, options.threads, options.images)
    if options.compare is not None:
        subjects |= _other_subjects(options.compare, bundle, targets, options)
    if layouts:
        subjects |= _torch_subjects(bundle, graphs, targets, layouts, options)
    step = stage("memory", len(targets))
    peaks = {}
    for name, target in targets.items():
        peaks[name] = measure_peak(
            folder, target.plan, batch=options.images, callers=options.threads
        )
        step()
    if not all(level_peak.running_only for level_peak in peaks.values()):
        notice("/proc/self/clear_refs cannot be written, so memory includes what loading used")
    step = stage("speed", slice_count(len(subjects), options.rounds))
    measurements = measure_rounds(
        subjects, rounds=options.rounds, seconds=options.seconds, progress=step
    )

    by_level = {name: measurements[SubjectKey("this", name)] for name in targets}
    unreduced = next(iter(by_level.values()))
    spread = {name: measured.ratio_to(unreduced) for name, measured in by_level.items()}
    report = Report(
        levels=rows(targets, by_level, peaks),
        memory=level_memory(peaks),
        speedup_quartiles={name: (ratio.low, ratio.high) for name, ratio in spread.items()},
        bundle=bundle.manifest.name,
        precision=bundle.manifest.precision,
        machine=machine(),
        runtime=software(native=graphs.native),
        threads=options.threads,
        batch=options.images,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    if bundle.manifest.text is not None and TEXTS in measurements:
        report.texts = _text_speed(measurements[TEXTS], bundle.manifest.text.most_tokens)
    if options.compare is not None:
        comparable = [name for name in targets if SubjectKey("other", name) in measurements]
        compared = [
            relative_speed(name, by_level[name], measurements[SubjectKey("other", name)])
            for name in comparable
        ]
        report.compare = Comparison(bundle=str(options.compare), levels=compared)
    if layouts:
        _add_torch(report, folder, targets, layouts, measurements, stage)
    if options.save:
        save(bundle, report, curves(bundle, graphs, report, stage))
        notice(f"{folder}: profile written")
    return report


def _text_speed(measured: Measurement, tokens: int) -> TextSpeed:
    return TextSpeed(
        tokens=tokens,
        texts_per_second=measured.images_per_second,
        p50_ms=measured.percentile_ms(50),
        p99_ms=measured.percentile_ms(99),
    )


def _bundle_subjects(
    runner: str, bundle: Bundle, graphs: Graphs, targets: Mapping[str, PlanTarget], options: Options
) -> dict[SubjectKey, Subject]:
    inputs = random_inputs(bundle, options.images)
    return {
        SubjectKey(runner, name): graph_subject(
            graphs, inputs, target.plan, options.threads, options.images
        )
        for name, target in targets.items()
    }


def _other_subjects(
    folder: Path, bundle: Bundle, targets: Mapping[str, PlanTarget], options: Options
) -> dict[SubjectKey, Subject]:
    other = Bundle.open(folder)
    comparable = shared_targets(bundle.manifest, other.manifest, targets)
    return _bundle_subjects("other", other, open_graphs(other), comparable, options)


def _torch_subjects(
    bundle: Bundle,
    graphs: Graphs,
    targets: Mapping[str, PlanTarget],
    layouts: Sequence[ThreadLayout],
    options: Options,
) -> dict[SubjectKey, Subject]:
    try:
        from tokenfold.bench.torch_eager import load_eager
    except ModuleNotFoundError as error:
        raise BenchError(
            f"--torch needs {error.name}, which is not installed: pip install 'tokenfold[export]'"
        ) from error
    try:
        network = load_eager(bundle, options.images)
        network.check(graphs, random_inputs(bundle, options.images))
    except ValueError as error:
        raise BenchError(f"--torch loads {bundle.manifest.source} again: {error}") from error
    return {
        SubjectKey(layout, name): network.subject(
            target.plan, layout.callers, layout.threads_per_run
        )
        for layout in layouts
        for name, target in targets.items()
    }


def _add_torch(
    report: Report,
    folder: Path,
    targets: Mapping[str, PlanTarget],
    layouts: Sequence[ThreadLayout],
    measurements: Mapping[SubjectKey, Measurement],
    stage: Stage,
) -> None:
    """Add PyTorch's rows to the report, with the faster thread layout at each level."""
    step = stage("memory of PyTorch", len(targets))
    best_layouts: dict[str, ThreadLayout] = {}
    peaks: dict[str, Peak] = {}
    for name, target in targets.items():
        layout = max(
            layouts, key=lambda layout: measurements[SubjectKey(layout, name)].images_per_second
        )
        peaks[name] = measure_peak(
            folder,
            target.plan,
            batch=report.batch,
            callers=layout.callers,
            torch_threads=layout.threads_per_run,
        )
        best_layouts[name] = layout
        step()
    measurements_by_level = {
        name: measurements[SubjectKey(layout, name)] for name, layout in best_layouts.items()
    }
    report.torch = [
        TorchRow(**row.model_dump(), mode=str(best_layouts[row.level]))
        for row in rows(targets, measurements_by_level, peaks)
    ]
    report.against_torch = {
        name: measurements[SubjectKey("this", name)].ratio_to(measured).median
        for name, measured in measurements_by_level.items()
    }


def _check_savable(options: Options, folder: Path) -> None:
    """Check that `--save` can succeed before minutes of measuring; raise BenchError otherwise."""
    if options.images != 1 or options.threads != cores() or options.levels is not None:
        raise BenchError(
            "--save records every level as the service runs it, so it cannot be combined with "
            "--batch, --threads and --levels"
        )
    if not os.access(folder.parent, os.W_OK):
        raise BenchError(f"--save replaces {folder}, but {folder.parent} is not writable")
