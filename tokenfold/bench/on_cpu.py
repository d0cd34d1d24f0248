"""The bench on the CPU: each level as the service runs it there, beside eager PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from tokenfold.bench.measure import Measured, Subject, in_rounds, slices
from tokenfold.bench.memory import Peak, peak
from tokenfold.bench.options import Options
from tokenfold.bench.record import curves, save
from tokenfold.bench.report import Comparison, Report, Texts, TorchRow, against, memory, rows
from tokenfold.bench.stages import BenchError, Stage, notice
from tokenfold.bench.subjects import (
    DualGraphs,
    Graphs,
    longest_texts,
    of_graph,
    of_texts,
    opened,
    random_inputs,
)
from tokenfold.bench.targets import Target, choose, shared
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.machine import cores, machine, software

BUSY = 10.0
"""Percent of the processor in other hands from which on the figures are doubtful."""


class Way(NamedTuple):
    """How PyTorch keeps the cores busy: callers at once, threads inside each run."""

    callers: int
    inside: int

    @classmethod
    def all(cls, threads: int) -> list[Way]:
        """One run on all cores, or one on each: which is faster depends on network and machine."""
        return sorted({cls(1, threads), cls(threads, 1)})

    def __str__(self) -> str:
        return f"{self.callers}x{self.inside}"


class Key(NamedTuple):
    """Whose slice of time it is. `who` is `this`, `other`, `texts`, or a way to run PyTorch."""

    who: str | Way
    level: str


TEXTS = Key("texts", "")


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
    graphs = opened(bundle)
    if not graphs.native:
        notice("the native ops are not built, so the portable ones run: see `make plugins`")
    # Not the load average: that still remembers what has just ended, such as an export.
    busy = psutil.cpu_percent(interval=0.5)
    if busy > BUSY:
        notice(f"other work takes {busy:.0f} % of the processor, which disturbs the figures")

    ways = Way.all(options.threads) if options.torch else []
    subjects = _of_bundle("this", bundle, graphs, targets, options)
    if isinstance(graphs, DualGraphs):
        texts = longest_texts(bundle, options.images)
        subjects[TEXTS] = of_texts(graphs, texts, options.threads, options.images)
    if options.compare is not None:
        subjects |= _of_other(options.compare, bundle, targets, options)
    if ways:
        subjects |= _of_torch(bundle, graphs, targets, ways, options)
    step = stage("memory", len(targets))
    peaks = {}
    for name, target in targets.items():
        peaks[name] = peak(folder, target.plan, batch=options.images, callers=options.threads)
        step()
    if not all(one.running_only for one in peaks.values()):
        notice("/proc/self/clear_refs cannot be written, so memory counts what loading took too")
    step = stage("speed", slices(len(subjects), options.rounds))
    found = in_rounds(subjects, rounds=options.rounds, seconds=options.seconds, progress=step)

    own = {name: found[Key("this", name)] for name in targets}
    unreduced = next(iter(own.values()))
    spread = {name: measured.against(unreduced) for name, measured in own.items()}
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
        both = [name for name in targets if Key("other", name) in found]
        compared = [against(name, own[name], found[Key("other", name)]) for name in both]
        report.compare = Comparison(bundle=str(options.compare), levels=compared)
    if ways:
        _add_torch(report, folder, targets, ways, found, stage)
    if options.save:
        save(bundle, report, curves(bundle, graphs, report, stage))
        notice(f"{folder}: profile written")
    return report


def _texts(measured: Measured, tokens: int) -> Texts:
    return Texts(
        tokens=tokens,
        texts_per_second=measured.images_per_second,
        p50_ms=measured.percentile_ms(50),
        p99_ms=measured.percentile_ms(99),
    )


def _of_bundle(
    who: str, bundle: Bundle, graphs: Graphs, targets: Mapping[str, Target], options: Options
) -> dict[Key, Subject]:
    inputs = random_inputs(bundle, options.images)
    return {
        Key(who, name): of_graph(graphs, inputs, target.plan, options.threads, options.images)
        for name, target in targets.items()
    }


def _of_other(
    folder: Path, bundle: Bundle, targets: Mapping[str, Target], options: Options
) -> dict[Key, Subject]:
    other = Bundle.open(folder)
    both = shared(bundle.manifest, other.manifest, targets)
    return _of_bundle("other", other, opened(other), both, options)


def _of_torch(
    bundle: Bundle,
    graphs: Graphs,
    targets: Mapping[str, Target],
    ways: Sequence[Way],
    options: Options,
) -> dict[Key, Subject]:
    try:
        from tokenfold.bench.torch_eager import eager
    except ModuleNotFoundError as error:
        raise BenchError(
            f"--torch needs {error.name}, which is not installed: pip install 'tokenfold[export]'"
        ) from error
    try:
        made = eager(bundle, options.images)
        made.check(graphs, random_inputs(bundle, options.images))
    except ValueError as error:
        raise BenchError(f"--torch loads {bundle.manifest.source} again: {error}") from error
    return {
        Key(way, name): made.subject(target.plan, way.callers, way.inside)
        for way in ways
        for name, target in targets.items()
    }


def _add_torch(
    report: Report,
    folder: Path,
    targets: Mapping[str, Target],
    ways: Sequence[Way],
    found: Mapping[Key, Measured],
    stage: Stage,
) -> None:
    """PyTorch's rows, at each level the way that was faster there."""
    step = stage("memory of PyTorch", len(targets))
    best: dict[str, Way] = {}
    peaks: dict[str, Peak] = {}
    for name, target in targets.items():
        way = max(ways, key=lambda way: found[Key(way, name)].images_per_second)
        peaks[name] = peak(
            folder,
            target.plan,
            batch=report.batch,
            callers=way.callers,
            torch_threads=way.inside,
        )
        best[name] = way
        step()
    eager = {name: found[Key(way, name)] for name, way in best.items()}
    report.torch = [
        TorchRow(**row.model_dump(), mode=str(best[row.level]))
        for row in rows(targets, eager, peaks)
    ]
    report.against_torch = {
        name: found[Key("this", name)].against(measured).median for name, measured in eager.items()
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
