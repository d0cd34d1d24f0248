"""The bench on a GPU: each level at each batch size, beside PyTorch on the same GPU.

Everything is loaded, compiled and recorded first. Then batch size by batch size is measured and
reported, and last the memory: who is interrupted has all that was measured until then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from export.bench.cuda_batch import Batch
from export.bench.cuda_report import CudaReport, DeviceMemory
from export.bench.device_memory import device_peak
from export.bench.gpu import gpu_machine
from export.bench.measure import slices
from export.bench.options import Options
from export.bench.stages import BenchError, Stage, notice
from export.bench.subjects import Graphs, opened, random_inputs
from export.bench.targets import Target, choose, runs_on
from export.bench.workers import Asked, Ready, Workers
from export.bundle import Bundle
from export.cuda import session
from export.pair_runtime import Float
from models.reduction.workload import Plan

DIFFERENT = 4
"""Batches that runs take turns with: more than are on their way at once."""

OFF, REDUCED_OFF = 0.05, 0.5
"""Relative error of logits, norm over norm, from which on PyTorch runs another network. Of reduced
ones more, because rounding sends some tokens elsewhere."""


def bench(options: Options, stage: Stage) -> CudaReport:
    """Measure a bundle.

    Raises:
        BenchError, BundleError, TargetError, MemoryProbeError: it cannot be measured as asked.
    """
    if (why := session.missing()) is not None:
        raise BenchError(f"--backend cuda: {why}")
    folder = options.bundle.resolve()
    bundle = Bundle.open(folder)
    targets = choose(bundle.manifest, options.r, options.levels, options.rates)
    asked = _asked(bundle, targets, options)
    with contextlib.ExitStack() as held:
        workers = held.enter_context(Workers(folder, asked))
        report, graphs, other = _loaded(bundle, targets, options, held)
        step = stage("PyTorch compiles", len(workers))
        ready, report.lost = workers.ready(options.torch_wait, step)
        report.lost += _strangers(bundle, graphs, ready)
        for lost in report.lost:
            notice(f"not measured: {lost}")
        for worker, _ in ready.values():
            report.machine.versions["torch"] = worker.torch
        for batch in options.batch:
            inputs = random_inputs(bundle, batch, DIFFERENT)
            one = Batch(batch, inputs, graphs, targets, ready)
            if other is not None:
                one.compare(*other)
            step = stage(f"batch {batch}", slices(one.subjects, options.rounds))
            found = one.measure(options.rounds, options.seconds, step)
            report.lost += found.lost
            report.rows += found.rows
            report.torch += found.torch
            report.against |= {batch: found.against} if found.against else {}
            _tell(report, options, batch)
    if options.memory:
        _add_memory(report, folder, targets, options, stage)
    report.complete = True
    _save(report, options)
    return report


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


def _loaded(
    bundle: Bundle,
    targets: Mapping[str, Target],
    options: Options,
    held: contextlib.ExitStack,
) -> tuple[CudaReport, Graphs, tuple[Graphs, dict[str, Target]] | None]:
    """An empty report, the bundle's graphs, and those of the other one with its plans."""
    manifest = bundle.manifest
    if manifest.precision == "int8":
        raise BenchError(f"{manifest.name} is int8, which is for the CPU")

    def graphs_of(one: Bundle, plans: Sequence[Plan]) -> Graphs:
        found = opened(one, "cuda")
        held.callback(found.close)
        begin = time.monotonic()
        recorded = found.warm(plans, options.batch)
        took = time.monotonic() - begin
        notice(f"{one.manifest.name}: {recorded} runs recorded as CUDA graphs in {took:.1f} s")
        if recorded < len(set(plans)) * len(options.batch):
            notice("runs that could not be recorded are launched kernel by kernel")
        return found

    graphs = graphs_of(bundle, [target.plan for target in targets.values()])
    if not graphs.native:
        notice("the ops are not compiled for CUDA, so the portable ones run")
    other = None
    if options.compare is not None:
        theirs = Bundle.open(options.compare)
        shared = {
            name: target if any(target.plan) else target._replace(plan=unreduced)
            for unreduced in [theirs.manifest.workload.unreduced]
            for name, target in targets.items()
            if runs_on(manifest, theirs.manifest, target.plan)
        }
        other = graphs_of(theirs, [target.plan for target in shared.values()]), shared
    report = CudaReport(
        bundle=manifest.name,
        source=manifest.source,
        method=manifest.workload.method,
        precision=manifest.precision,
        tokens=manifest.workload.tokens,
        native=graphs.native,
        machine=gpu_machine(),
        rounds=options.rounds,
        seconds=options.seconds,
        other=None if options.compare is None else str(options.compare),
    )
    return report, graphs, other


def _strangers(bundle: Bundle, graphs: Graphs, ready: Ready) -> list[str]:
    """Take out what is another network than the bundle's, and say why."""
    lost = []
    for one, (worker, row) in list(ready.items()):
        (images,) = random_inputs(bundle, one.batch, 1)
        wanted = graphs.run(images, one.plan)[: len(worker.logits[row])]
        if not (off := _off(worker.logits[row], wanted)) <= (REDUCED_OFF if any(one.plan) else OFF):
            lost.append(f"{one}: its logits are off by {off:.1e} of the bundle's norm")
            del ready[one]
    return lost


def _off(found: Float, wanted: Float) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.linalg.norm(found - wanted)) / max(float(np.linalg.norm(wanted)), 1e-6)


def _add_memory(
    report: CudaReport,
    folder: Path,
    targets: Mapping[str, Target],
    options: Options,
    stage: Stage,
) -> None:
    batch = max(options.batch)
    step = stage("memory", len(targets))
    unreduced = None
    for level, target in targets.items():
        peak = device_peak(folder, target.plan, batch=batch)
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


def _tell(report: CudaReport, options: Options, batch: int) -> None:
    """What there is of a batch size, at once."""
    _save(report, options)
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=160)
    console.print(report.speed_table(batch))


def _save(report: CudaReport, options: Options) -> None:
    if options.out is None:
        return
    # Beside it first: whoever is interrupted has the last whole one.
    draft = options.out.with_name(f"{options.out.name}.new")
    draft.write_text(report.json_text() + "\n")
    draft.replace(options.out)
