"""The bench on a GPU: each level at each batch size, beside PyTorch on the same GPU.

Everything is built, loaded, compiled and recorded first. Then batch size by batch size is measured
and reported, and last the memory: who is interrupted has all that was measured until then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from tokenfold.bench import engine_memory, engines
from tokenfold.bench.device_memory import device_peak
from tokenfold.bench.engine_report import TensorRt
from tokenfold.bench.gpu_batch import Batch
from tokenfold.bench.gpu_loading import Compared, load, strangers
from tokenfold.bench.gpu_report import DeviceMemory, GpuReport
from tokenfold.bench.measure import slices
from tokenfold.bench.options import Options
from tokenfold.bench.stages import BenchError, Stage, notice
from tokenfold.bench.subjects import random_inputs
from tokenfold.bench.targets import Target, choose, shared
from tokenfold.bench.workers import Asked, Workers
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.cuda import session
from tokenfold.runtime.tensorrt import runtime
from tokenfold.runtime.tensorrt.store import engines_folder

DIFFERENT = 4
"""Batches that runs take turns with: more than are on their way at once."""


def bench(options: Options, stage: Stage) -> GpuReport:
    """Measure a bundle.

    Raises:
        BenchError, BundleError, TargetError, MemoryProbeError: it cannot be measured as asked.
        RuntimeError: the GPU, or what runs on it, fails.
    """
    _check_backends(options)
    folder = options.bundle.resolve()
    bundle = Bundle.open(folder)
    targets = choose(bundle.manifest, options.r, options.levels, options.rates)
    asked = _asked(bundle, targets, options)
    if (why := bundle.manifest.cpu_only) is not None:
        raise BenchError(why)
    other = None
    if options.compare is not None:
        theirs = Bundle.open(options.compare)
        other = Compared(theirs, shared(bundle.manifest, theirs.manifest, targets))
    root = _engines(bundle, other, options, stage)
    with contextlib.ExitStack() as held:
        workers = held.enter_context(Workers(folder, asked))
        report, graphs, beside = load(bundle, other, targets, options, root, held)
        step = stage("PyTorch compiles", len(workers))
        ready, lost = workers.ready(options.torch_wait, step)
        report.lost += lost + strangers(bundle, graphs, ready)
        for why in report.lost:
            notice(f"not measured: {why}")
        for worker, _ in ready.values():
            report.machine.versions["torch"] = worker.torch
        for batch in options.batch:
            inputs = random_inputs(bundle, batch, DIFFERENT)
            one = Batch(batch, inputs, graphs, targets, ready)
            for another in beside:
                one.compare(another)
            step = stage(f"batch {batch}", slices(one.subjects, options.rounds))
            found = one.measure(options.rounds, options.seconds, step)
            report.lost += found.lost
            report.rows += found.rows
            report.torch += found.torch
            for who, compared in found.against.items():
                report.beside(who)[batch] = compared
            _tell(report, options, batch)
    if options.memory:
        _add_memory(report, folder, targets, options, root, stage)
    report.complete = True
    _save(report, options)
    return report


def _check_backends(options: Options) -> None:
    """Before anything is loaded, rather than after."""
    for option, backend in (("--backend", options.backend), ("--beside", options.beside)):
        if backend is None:
            continue
        missing = runtime.missing if backend == "tensorrt" else session.missing
        if (why := missing()) is not None:
            raise BenchError(f"{option} {backend}: {why}")


def _engines(bundle: Bundle, other: Compared | None, options: Options, stage: Stage) -> Path | None:
    """The folder of the engines, where all that will run are then; None without TensorRT."""
    if options.backend != "tensorrt":
        return None
    root = (options.engines or engines_folder()).resolve()
    engines.prepare(bundle, root, static=options.static_levels, stage=stage)
    if other is not None:
        engines.prepare(other.bundle, root, static=False, stage=stage)
    return root


def _asked(bundle: Bundle, targets: Mapping[str, Target], options: Options) -> list[Asked]:
    if options.torch and bundle.manifest.kind != "classifier":
        raise BenchError(f"--torch on a GPU is for classifiers, not for a {bundle.manifest.kind}")
    compiled = targets if options.torch_levels is None else options.torch_levels
    if unknown := [level for level in compiled if level not in targets]:
        raise BenchError(
            f"--torch-levels: {unknown[0]!r} is not measured; {', '.join(targets)} are"
        )
    return [
        Asked(way, level, target.plan, batch)
        for way in options.torch
        for level, target in targets.items()
        if way in ("eager", "blocks") or level in compiled
        for batch in options.batch
    ]


def _add_memory(
    report: GpuReport,
    folder: Path,
    targets: Mapping[str, Target],
    options: Options,
    root: Path | None,
    stage: Stage,
) -> None:
    assert options.backend != "cpu"
    batch = max(options.batch)
    step = stage("memory", len(targets))
    unreduced = None
    for level, target in targets.items():
        peak = device_peak(folder, target.plan, batch=batch, backend=options.backend, engines=root)
        working = peak.peak - peak.loaded
        unreduced = working if unreduced is None else unreduced
        report.memory.append(
            DeviceMemory(
                level=level,
                batch=batch,
                peak_mb=peak.peak / 1e6,
                working_mb=working / 1e6,
                working_ratio=working / unreduced if unreduced else None,
            )
        )
        _save(report, options)
        step()
    if report.tensorrt is not None and root is not None:
        _add_engine_memory(report.tensorrt, folder, root)
        _save(report, options)


def _add_engine_memory(tensorrt: TensorRt, folder: Path, root: Path) -> None:
    for found, static in ((tensorrt.one, False), (tensorrt.each, True)):
        if found is not None:
            found.loaded_mb = engine_memory.loaded(folder, root, static=static) / 1e6


def _tell(report: GpuReport, options: Options, batch: int) -> None:
    """What there is of a batch size, at once."""
    _save(report, options)
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=160)
    console.print(report.speed_table(batch))


def _save(report: GpuReport, options: Options) -> None:
    if options.out is None:
        return
    # Beside it first: whoever is interrupted has the last whole one.
    draft = options.out.with_name(f"{options.out.name}.new")
    draft.write_text(report.json_text() + "\n")
    draft.replace(options.out)
