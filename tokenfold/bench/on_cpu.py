"""The bench on the CPU: each level as the service runs it there, beside eager PyTorch."""

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
from tokenfold.bench.report import Comparison, Report, TextSpeed, TorchRow, relative_speed, memory, rows
from tokenfold.bench.stages import BenchError, Stage, notice
from tokenfold.bench.subjects import (
    DualGraphs,
    Graphs,
    longest_texts,
    graph_subject,
    text_subject,
    open_graphs,
    random_inputs,
)
from tokenfold.bench.targets import PlanTarget, choose, shared_targets
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.machine import cores, machine, software

BUSY = 10.0
"""Percent of the processor in other hands from which on the figures are doubtful."""


class ThreadLayout(NamedTuple):
    """How PyTorch keeps the cores busy: callers at once, threads inside each run."""

    callers: int
    threads_per_run: int

    @classmethod
    def all(cls, threads: int) -> list[ThreadLayout]:
        """One run on all cores, or one on each: which is faster depends on network and machine."""
        return sorted({cls(1, threads), cls(threads, 1)})

    def __str__(self) -> str:
        return f"{self.callers}x{self.threads_per_run}"


class SubjectKey(NamedTuple):
    """Whose slice of time it is. `who` is `this`, `other`, `texts`, or a way to run PyTorch."""

    who: str | ThreadLayout
    level: str


TEXTS = SubjectKey("texts", "")


def bench(options: Options, stage: Stage) -> Report:
    """Measure a bundle.

    Raises:
        BenchError, BundleError, TargetError, MemoryProbeError: it cannot be measured as asked.
    """
    folder = options.bundle.resolve()
    bundle = Bundle.open(folder)
    if options.save:
        _check_savable(options, folder)
    targets = choose(bundle.manifest, options.r, options.levels, options.rates)
    graphs = open_graphs(bundle)
    if not graphs.native:
        notice("the native ops are not built, so the portable ones run: see `make plugins`")
    # Not the load average: that still remembers what has just ended, such as an export.
    busy = psutil.cpu_percent(interval=0.5)
    if busy > BUSY:
        notice(f"other work takes {busy:.0f} % of the processor, which disturbs the figures")

    ways = ThreadLayout.all(options.threads) if options.torch else []
    subjects = _of_bundle("this", bundle, graphs, targets, options)
    if isinstance(graphs, DualGraphs):
        texts = longest_texts(bundle, options.images)
        subjects[TEXTS] = text_subject(graphs, texts, options.threads, options.images)
    if options.compare is not None:
        subjects |= _of_other(options.compare, bundle, targets, options)
    if ways:
        subjects |= _of_torch(bundle, graphs, targets, ways, options)
    step = stage("memory", len(targets))
    peaks = {}
    for name, target in targets.items():
        peaks[name] = measure_peak(folder, target.plan, batch=options.images, callers=options.threads)
        step()
    if not all(one.running_only for one in peaks.values()):
        notice("/proc/self/clear_refs cannot be written, so memory counts what loading took too")
    step = stage("speed", slice_count(len(subjects), options.rounds))
    found = measure_rounds(subjects, rounds=options.rounds, seconds=options.seconds, progress=step)

    own = {name: found[SubjectKey("this", name)] for name in targets}
    unreduced = next(iter(own.values()))
    spread = {name: measured.ratio_to(unreduced) for name, measured in own.items()}
    report = Report(
        levels=rows(targets, own, peaks),
        memory=memory(peaks),
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
    if bundle.manifest.text is not None and TEXTS in found:
        report.texts = _texts(found[TEXTS], bundle.manifest.text.most_tokens)
    if options.compare is not None:
        both = [name for name in targets if SubjectKey("other", name) in found]
        compared = [relative_speed(name, own[name], found[SubjectKey("other", name)]) for name in both]
        report.compare = Comparison(bundle=str(options.compare), levels=compared)
    if ways:
        _add_torch(report, folder, targets, ways, found, stage)
    if options.save:
        save(bundle, report, curves(bundle, graphs, report, stage))
        notice(f"{folder}: profile written")
    return report


def _texts(measured: Measurement, tokens: int) -> TextSpeed:
    return TextSpeed(
        tokens=tokens,
        texts_per_second=measured.images_per_second,
        p50_ms=measured.percentile_ms(50),
        p99_ms=measured.percentile_ms(99),
    )


def _of_bundle(
    who: str, bundle: Bundle, graphs: Graphs, targets: Mapping[str, PlanTarget], options: Options
) -> dict[SubjectKey, Subject]:
    inputs = random_inputs(bundle, options.images)
    return {
        SubjectKey(who, name): graph_subject(graphs, inputs, target.plan, options.threads, options.images)
        for name, target in targets.items()
    }


def _of_other(
    folder: Path, bundle: Bundle, targets: Mapping[str, PlanTarget], options: Options
) -> dict[SubjectKey, Subject]:
    other = Bundle.open(folder)
    both = shared_targets(bundle.manifest, other.manifest, targets)
    return _of_bundle("other", other, open_graphs(other), both, options)


def _of_torch(
    bundle: Bundle,
    graphs: Graphs,
    targets: Mapping[str, PlanTarget],
    ways: Sequence[ThreadLayout],
    options: Options,
) -> dict[SubjectKey, Subject]:
    try:
        from tokenfold.bench.torch_eager import load_eager
    except ModuleNotFoundError as error:
        raise BenchError(
            f"--torch needs {error.name}, which is not installed: pip install 'tokenfold[export]'"
        ) from error
    try:
        made = load_eager(bundle, options.images)
        made.check(graphs, random_inputs(bundle, options.images))
    except ValueError as error:
        raise BenchError(f"--torch loads {bundle.manifest.source} again: {error}") from error
    return {
        SubjectKey(way, name): made.subject(target.plan, way.callers, way.threads_per_run)
        for way in ways
        for name, target in targets.items()
    }


def _add_torch(
    report: Report,
    folder: Path,
    targets: Mapping[str, PlanTarget],
    ways: Sequence[ThreadLayout],
    found: Mapping[SubjectKey, Measurement],
    stage: Stage,
) -> None:
    """PyTorch's rows, at each level the way that was faster there."""
    step = stage("memory of PyTorch", len(targets))
    best: dict[str, ThreadLayout] = {}
    peaks: dict[str, Peak] = {}
    for name, target in targets.items():
        way = max(ways, key=lambda way: found[SubjectKey(way, name)].images_per_second)
        peaks[name] = measure_peak(
            folder,
            target.plan,
            batch=report.batch,
            callers=way.callers,
            torch_threads=way.threads_per_run,
        )
        best[name] = way
        step()
    eager = {name: found[SubjectKey(way, name)] for name, way in best.items()}
    report.torch = [
        TorchRow(**row.model_dump(), mode=str(best[row.level]))
        for row in rows(targets, eager, peaks)
    ]
    report.against_torch = {
        name: found[SubjectKey("this", name)].ratio_to(measured).median for name, measured in eager.items()
    }


def _check_savable(options: Options, folder: Path) -> None:
    """Before minutes of measuring, rather than after."""
    if options.images != 1 or options.threads != cores() or options.levels is not None:
        raise BenchError(
            "--save records every level, run as the service does: it goes without --batch, "
            "--threads and --levels"
        )
    if not os.access(folder.parent, os.W_OK):
        raise BenchError(f"--save replaces {folder}, but {folder.parent} is not writable")
