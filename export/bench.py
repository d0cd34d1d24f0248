"""`tokenfold bench`: how fast each level of a bundle is, and how much memory it takes."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress

from export.bundle import Bundle, BundleError, Latency, LevelProfile, Profile, write_profile
from export.machine import machine, runtime
from export.measure import Measured, Subject, in_rounds, slices
from export.memory import MemoryProbeError, peak_mb
from export.report import Against, Comparison, Report, Row, TorchRow
from export.runtime import Session
from export.subjects import of_graph, random_batches
from export.targets import Target, TargetError, choose, runs_on

DESCRIPTION = """\
Measure every level of a bundle: images per second, speedup over the unreduced network, efficiency
(speedup over what the FLOPs alone promise), time of one run, and peak memory."""

METHOD = """\
Work runs as in the service: one session with one thread inside a run, run from as many threads as
there are cores, one image a run. Every round gives each level a short slice of time; reported are
medians over the rounds, for speedups of the ratios within a round, with their quartiles: other work
on the machine shows there. p50 and p99 are times of single runs, beside those of the other threads.
Peak memory is the largest resident set, while it runs, of a process that runs this level only; MB
are 10^6 bytes."""

MORE_BATCHES = (2, 4, 8)
"""What a saved profile knows the latency of, beside one image."""

BUSY = 0.5
"""Load average from which on the figures are doubtful."""

Stage = Callable[[str, int], Callable[[], None]]
"""Starts a named stage of so many steps, and returns what to call after each step."""


class BenchError(ValueError):
    """Something that cannot be measured as asked; the message says why."""


class Options(NamedTuple):
    """The command line; its help says what each means."""

    bundle: Path
    r: list[int]
    levels: list[str] | None
    compare: Path | None
    torch: bool
    save: bool
    json: bool
    threads: int
    batch: int
    rounds: int
    seconds: float


class Way(NamedTuple):
    """How PyTorch keeps the cores busy: callers at once, threads inside each run."""

    callers: int
    inside: int

    def __str__(self) -> str:
        return f"{self.callers} x {self.inside} thread{'s' * (self.inside > 1)}"


class Key(NamedTuple):
    """Whose slice of time it is. `who` is `this`, `other`, or a way to run PyTorch."""

    who: str | Way
    level: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit code: 2 for what cannot be measured."""
    options = Options(**vars(_parser().parse_args(argv)))
    try:
        with _progress() as stage:
            report = _bench(options, stage)
    except (BenchError, BundleError, TargetError, MemoryProbeError, OSError) as error:
        # One line, though a schema's errors come in several.
        print(f"tokenfold bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.json:
        print(report.json_text())
    else:
        Console().print(report.tables())
    return 0


def _bench(options: Options, stage: Stage) -> Report:
    folder = options.bundle.resolve()
    if options.save:
        _check_savable(options, folder)
    bundle = Bundle.open(folder)
    targets = choose(bundle.manifest, options.r, options.levels)
    session = Session(bundle)
    if not session.native:
        _notice("the native ops are not built, so the portable ones run: see `make plugins`")
    load = os.getloadavg()[0]
    if load > BUSY:
        _notice(f"other work runs on this machine (load {load:.1f}), which disturbs the figures")

    ways = _ways(options.threads) if options.torch else []
    subjects = _of_bundle("this", bundle, session, targets, options)
    if options.compare is not None:
        subjects |= _of_other(bundle, targets, options)
    if ways:
        subjects |= _of_torch(bundle, targets, ways, options)
    step = stage("speed", slices(len(subjects), options.rounds))
    found = in_rounds(subjects, rounds=options.rounds, seconds=options.seconds, progress=step)

    own = {name: found[Key("this", name)] for name in targets}
    step = stage("memory", len(targets) * (2 if ways else 1))
    peaks = {}
    for name, target in targets.items():
        peaks[name] = peak_mb(folder, target.plan, batch=options.batch, callers=options.threads)
        step()
    report = Report(
        levels=_rows(targets, own, peaks),
        speedup_quartiles=_quartiles(own),
        bundle=bundle.manifest.name,
        precision=bundle.manifest.precision,
        machine=machine(),
        runtime=runtime(native=session.native),
        threads=options.threads,
        batch=options.batch,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    if options.compare is not None:
        report.compare = _comparison(str(options.compare), own, found)
    if ways:
        _add_torch(report, folder, targets, ways, found, step)
    if options.save:
        _save(bundle, session, report, targets, stage)
    return report


def _of_bundle(
    who: str, bundle: Bundle, session: Session, targets: Mapping[str, Target], options: Options
) -> dict[Key, Subject]:
    batches = random_batches(bundle.manifest.preprocess.size, options.batch)
    return {
        Key(who, name): of_graph(session, batches, target.plan, options.threads)
        for name, target in targets.items()
    }


def _of_other(
    bundle: Bundle, targets: Mapping[str, Target], options: Options
) -> dict[Key, Subject]:
    assert options.compare is not None
    other = Bundle.open(options.compare.resolve())
    shared = {
        name: target
        for name, target in targets.items()
        if runs_on(bundle.manifest, other.manifest, target.plan)
    }
    return _of_bundle("other", other, Session(other), shared, options)


def _of_torch(
    bundle: Bundle, targets: Mapping[str, Target], ways: Sequence[Way], options: Options
) -> dict[Key, Subject]:
    try:
        from export.eager import Eager
    except ModuleNotFoundError as error:
        raise BenchError(
            f"--torch needs {error.name}, which is not installed: pip install 'tokenfold[export]'"
        ) from error
    try:
        eager = Eager(bundle.manifest)
    except ValueError as error:
        raise BenchError(f"--torch loads {bundle.manifest.source} again: {error}") from error
    batches = random_batches(bundle.manifest.preprocess.size, options.batch)
    return {
        Key(way, name): eager.subject(batches, target.plan, way.callers, way.inside)
        for way in ways
        for name, target in targets.items()
    }


def _ways(cores: int) -> list[Way]:
    """One run on all cores, or one on each. Which is faster depends on network and machine."""
    return [Way(1, cores), Way(cores, 1)] if cores > 1 else [Way(1, 1)]
