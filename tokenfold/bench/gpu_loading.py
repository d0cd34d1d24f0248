"""Load and record everything that a bench on a GPU runs, before anything is measured."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from tokenfold.bench import engines
from tokenfold.bench.gpu_batch import Contender
from tokenfold.bench.gpu_report import GpuMachine, GpuReport
from tokenfold.bench.options import Options
from tokenfold.bench.stages import notice
from tokenfold.bench.subjects import Graphs, open_graphs, random_inputs
from tokenfold.bench.targets import PlanTarget
from tokenfold.bench.workers import Ready
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.cuda import device
from tokenfold.runtime.machine import machine
from tokenfold.runtime.pair import Float
from tokenfold.runtime.session import SessionOptions

TOLERANCE, REDUCED_TOLERANCE = 0.05, 0.5
"""Largest relative error of logits, norm over norm, at which two runs count as the same network.
Reduced plans get a wider tolerance, because rounding makes some tokens merge elsewhere."""


UNKNOWN = "unknown"
"""Version of a driver that cannot be queried."""


class OtherBundle(NamedTuple):
    """Another bundle to compare with, and the targets that it can run."""

    bundle: Bundle
    targets: Mapping[str, PlanTarget]


class GpuSetup(NamedTuple):
    """Everything that is to be measured.

    Attributes:
        report: report without figures.
        contenders: other ways to run the same plans.
    """

    report: GpuReport
    graphs: Graphs
    contenders: list[Contender]


def load(
    bundle: Bundle,
    other: OtherBundle | None,
    targets: Mapping[str, PlanTarget],
    options: Options,
    root: Path | None,
    stack: ExitStack,
) -> GpuSetup:
    """Load a bundle and its contenders; `stack` releases all of them.

    Args:
        other: bundle to compare with.
        options: command line, for a GPU backend.
        root: folder of the engines; None without TensorRT.

    Raises:
        RuntimeError: something cannot be loaded.
    """
    manifest = bundle.manifest

    def graphs_of(
        opened_bundle: Bundle, opening: SessionOptions, plans: Sequence[Plan], suffix: str = ""
    ) -> Graphs:
        graphs = open_graphs(opened_bundle, opening)
        stack.callback(graphs.close)
        begin = time.monotonic()
        recorded = graphs.warm(plans, options.batch)
        elapsed = time.monotonic() - begin
        name = opened_bundle.manifest.name + suffix
        notice(f"{name}: {recorded} runs recorded as CUDA graphs in {elapsed:.1f} s")
        if recorded < len(set(plans)) * len(options.batch):
            notice("runs that could not be recorded are launched kernel by kernel")
        return graphs

    opening = SessionOptions(options.backend, engines=root, static=False)
    graphs = graphs_of(bundle, opening, _plans(targets))
    if not graphs.native:
        notice("the ops are not compiled for CUDA, so portable ops run")
    contenders = []
    if other is not None:
        other_graphs = graphs_of(other.bundle, opening, _plans(other.targets))
        contenders.append(Contender("other", other_graphs, other.targets))
    if options.beside is not None:
        cuda = graphs_of(
            bundle, SessionOptions(options.beside), _plans(targets), " in ONNX Runtime"
        )
        contenders.append(Contender("cuda", cuda, targets))
    if root is not None and options.static_levels:
        fixed = engines.fixed_plans(bundle, root)
        levels = {name: target for name, target in targets.items() if target.plan in fixed}
        if levels:
            static_opening = opening._replace(static=True)
            static = graphs_of(bundle, static_opening, _plans(levels), " on engines of one plan")
            contenders.append(Contender("static", static, levels))
        else:
            notice("no measured level has an engine for its own plan")
    report = GpuReport(
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
    if root is not None:
        report.tensorrt = engines.describe(bundle, root, static=options.static_levels)
        name, _, number = report.tensorrt.version.partition(" ")
        report.machine.versions[name] = number
    return GpuSetup(report, graphs, _drop_disagreeing(bundle, graphs, contenders, report.lost))


def drop_mismatches(bundle: Bundle, graphs: Graphs, ready: Ready) -> list[str]:
    """Remove PyTorch runs whose logits differ from the bundle's; return the reasons."""
    lost = []
    for run, (worker, row) in list(ready.items()):
        (images,) = random_inputs(bundle, run.batch, 1)
        expected = graphs.run(images, run.plan)[: len(worker.logits[row])]
        if (mismatch := _mismatch(worker.logits[row], expected, run.plan)) is not None:
            lost.append(f"{run}: {mismatch}")
            del ready[run]
    return lost


def _plans(targets: Mapping[str, PlanTarget]) -> list[Plan]:
    return [target.plan for target in targets.values()]


def _drop_disagreeing(
    bundle: Bundle, graphs: Graphs, contenders: Sequence[Contender], lost: list[str]
) -> list[Contender]:
    """Return the contenders without the levels at which their logits differ from `graphs`.

    Another bundle is not checked, because it may hold another network.

    Args:
        lost: list that receives the reason for each level that is left out.
    """
    (inputs,) = random_inputs(bundle, 1, 1)
    agreeing_contenders = []
    for contender_name, other, targets in contenders:
        agreeing = dict(targets)
        for level, target in targets.items() if contender_name != "other" else ():
            logits = other.run(inputs, target.plan)
            mismatch = _mismatch(logits, graphs.run(inputs, target.plan), target.plan)
            if mismatch is not None:
                name = "ONNX Runtime" if contender_name == "cuda" else "engine of one plan"
                lost.append(f"{name}, {level}: {mismatch}")
                del agreeing[level]
        agreeing_contenders.append(Contender(contender_name, other, agreeing))
    return agreeing_contenders


def _mismatch(logits: Float, expected: Float, plan: Plan) -> str | None:
    """Return why logits do not belong to the bundle's network; None if they do."""
    off = float("inf")
    if logits.shape == expected.shape:
        off = float(np.linalg.norm(logits - expected)) / max(float(np.linalg.norm(expected)), 1e-6)
    # Written so that NaN counts as a mismatch.
    if off <= (REDUCED_TOLERANCE if any(plan) else TOLERANCE):
        return None
    return f"its logits are off by {off:.1e} of the bundle's norm"


def gpu_machine() -> GpuMachine:
    """Describe the first GPU that this process sees.

    Raises:
        CudaError: there is no GPU.
    """
    driver, cuda = _driver()
    versions = {"onnxruntime": onnxruntime.__version__}
    with suppress(PackageNotFoundError):
        versions["cuda-bindings"] = version("cuda-bindings")
    return GpuMachine(
        gpu=device.name(),
        driver=driver,
        cuda=cuda,
        processor=machine(),
        versions=versions,
        date=date.today().isoformat(),
    )


def _driver() -> tuple[str, str]:
    """Return the version of the driver, and the newest CUDA version that it supports."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return UNKNOWN, UNKNOWN
    try:
        nvml.nvmlInit()
        driver = nvml.nvmlSystemGetDriverVersion()
        number = nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError:
        return UNKNOWN, UNKNOWN
    name = driver.decode() if isinstance(driver, bytes) else str(driver)
    return name, f"{number // 1000}.{number % 1000 // 10}"
