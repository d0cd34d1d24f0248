"""The bench on a GPU: each level at each batch size, compared with PyTorch on the same GPU.

Everything is built, loaded, compiled and recorded first. Then each batch size is measured and
reported, and last the memory. An interrupted bench keeps everything measured so far.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from tokenfold.bench import engine_memory, engines
from tokenfold.bench.device_memory import measure_device_peak
from tokenfold.bench.engine_report import TensorRt
from tokenfold.bench.gpu_batch import Batch
from tokenfold.bench.gpu_loading import OtherBundle, drop_mismatches, load
from tokenfold.bench.gpu_report import DeviceMemory, GpuReport
from tokenfold.bench.measure import slice_count
from tokenfold.bench.options import Options
from tokenfold.bench.stages import BenchError, Stage, notice
from tokenfold.bench.subjects import random_inputs
from tokenfold.bench.targets import PlanTarget, choose, shared_targets
from tokenfold.bench.workers import TorchRun, Workers
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.cuda import session
from tokenfold.runtime.tensorrt import runtime
from tokenfold.runtime.tensorrt.store import engines_folder

DISTINCT_INPUTS = 4
"""Distinct input batches that the runs cycle through: more than are in flight at once."""


def bench(options: Options, stage: Stage) -> GpuReport:
    """Measure a bundle.

    Raises:
        BenchError, BundleError, TargetError, MemoryProbeError: the request cannot be measured.
        RuntimeError: the GPU, or a library on it, fails.
    """
    _check_backends(options)
    folder = options.bundle.resolve()
    bundle = Bundle.open(folder)
    targets = choose(bundle.manifest, options.r, options.levels, options.rates)
    torch_runs = _torch_runs(bundle, targets, options)
    if (reason := bundle.manifest.cpu_only) is not None:
        raise BenchError(reason)
    other = None
    if options.compare is not None:
        other_bundle = Bundle.open(options.compare)
        other = OtherBundle(
            other_bundle, shared_targets(bundle.manifest, other_bundle.manifest, targets)
        )
    root = _engines(bundle, other, options, stage)
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(folder, torch_runs))
        report, graphs, contenders = load(bundle, other, targets, options, root, stack)
        step = stage("PyTorch compiles", len(workers))
        ready, lost = workers.ready(options.torch_wait, step)
        report.lost += lost + drop_mismatches(bundle, graphs, ready)
        for reason in report.lost:
            notice(f"not measured: {reason}")
        for worker, _ in ready.values():
            report.machine.versions["torch"] = worker.torch
        for batch in options.batch:
            inputs = random_inputs(bundle, batch, DISTINCT_INPUTS)
            batch_runs = Batch(batch, inputs, graphs, targets, ready)
            for contender in contenders:
                batch_runs.compare(contender)
            step = stage(f"batch {batch}", slice_count(batch_runs.subjects, options.rounds))
            result = batch_runs.measure(options.rounds, options.seconds, step)
            report.lost += result.lost
            report.rows += result.rows
            report.torch += result.torch
            for name, compared in result.against.items():
                report.results_of(name)[batch] = compared
            _show(report, options, batch)
    if options.memory:
        _add_memory(report, folder, targets, options, root, stage)
    report.complete = True
    _save(report, options)
    return report


def _check_backends(options: Options) -> None:
    """Check that the requested backends are available; raise BenchError otherwise."""
    for option, backend in (("--backend", options.backend), ("--beside", options.beside)):
        if backend is None:
            continue
        missing = runtime.missing if backend == "tensorrt" else session.missing
        if (reason := missing()) is not None:
            raise BenchError(f"{option} {backend}: {reason}")


def _engines(
    bundle: Bundle, other: OtherBundle | None, options: Options, stage: Stage
) -> Path | None:
    """Build missing engines and return the folder of engines; None without TensorRT."""
    if options.backend != "tensorrt":
        return None
    root = (options.engines or engines_folder()).resolve()
    engines.build_missing(bundle, root, static=options.static_levels, stage=stage)
    if other is not None:
        engines.build_missing(other.bundle, root, static=False, stage=stage)
    return root


def _torch_runs(
    bundle: Bundle, targets: Mapping[str, PlanTarget], options: Options
) -> list[TorchRun]:
    if options.torch and bundle.manifest.kind != "classifier":
        raise BenchError(
            f"--torch on a GPU supports classifiers only; this bundle is a {bundle.manifest.kind}"
        )
    compiled_levels = targets if options.torch_levels is None else options.torch_levels
    if unknown := [level for level in compiled_levels if level not in targets]:
        raise BenchError(
            f"--torch-levels: {unknown[0]!r} is not measured; measured are {', '.join(targets)}"
        )
    return [
        TorchRun(way, level, target.plan, batch)
        for way in options.torch
        for level, target in targets.items()
        if way in ("eager", "blocks") or level in compiled_levels
        for batch in options.batch
    ]


def _add_memory(
    report: GpuReport,
    folder: Path,
    targets: Mapping[str, PlanTarget],
    options: Options,
    root: Path | None,
    stage: Stage,
) -> None:
    assert options.backend != "cpu"
    batch = max(options.batch)
    step = stage("memory", len(targets))
    unreduced = None
    for level, target in targets.items():
        peak = measure_device_peak(
            folder, target.plan, batch=batch, backend=options.backend, engines=root
        )
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
    for engine_set, static in ((tensorrt.one, False), (tensorrt.each, True)):
        if engine_set is not None:
            engine_set.loaded_mb = engine_memory.loaded_bytes(folder, root, static=static) / 1e6


def _show(report: GpuReport, options: Options, batch: int) -> None:
    """Save the report and print the table of a batch size as soon as it is measured."""
    _save(report, options)
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=160)
    console.print(report.speed_table(batch))


def _save(report: GpuReport, options: Options) -> None:
    if options.out is None:
        return
    # Write beside the file first, so that an interrupted bench leaves the last complete report.
    draft = options.out.with_name(f"{options.out.name}.new")
    draft.write_text(report.json_text() + "\n")
    draft.replace(options.out)
