"""What a bench on a GPU runs there, loaded and recorded before anything is measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenfold.bench import engines
from tokenfold.bench.gpu import gpu_machine
from tokenfold.bench.gpu_batch import Beside
from tokenfold.bench.gpu_report import GpuReport
from tokenfold.bench.options import Options
from tokenfold.bench.stages import notice
from tokenfold.bench.subjects import Graphs, opened, random_inputs
from tokenfold.bench.targets import Target
from tokenfold.bench.workers import Ready
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.pair import Float
from tokenfold.runtime.session import SessionOptions

OFF, REDUCED_OFF = 0.05, 0.5
"""Relative error of logits, norm over norm, from which on something else runs another network. Of
reduced ones more, because rounding sends some tokens elsewhere."""


class Compared(NamedTuple):
    """Another bundle, and what of the targets it runs too."""

    bundle: Bundle
    targets: Mapping[str, Target]


class Loaded(NamedTuple):
    """What is to be measured.

    Attributes:
        report: with no figures yet.
        beside: what runs the same plans.
    """

    report: GpuReport
    graphs: Graphs
    beside: list[Beside]


def load(
    bundle: Bundle,
    other: Compared | None,
    targets: Mapping[str, Target],
    options: Options,
    root: Path | None,
    held: ExitStack,
) -> Loaded:
    """Load a bundle, and what is to run beside it; `held` gives all of it back.

    Args:
        other: to compare it with.
        options: for a GPU.
        root: the folder of the engines, where TensorRT is measured.

    Raises:
        RuntimeError: something cannot be loaded.
    """
    manifest = bundle.manifest

    def graphs_of(
        one: Bundle, opening: SessionOptions, plans: Sequence[Plan], more: str = ""
    ) -> Graphs:
        found = opened(one, opening)
        held.callback(found.close)
        begin = time.monotonic()
        recorded = found.warm(plans, options.batch)
        took = time.monotonic() - begin
        name = one.manifest.name + more
        notice(f"{name}: {recorded} runs recorded as CUDA graphs in {took:.1f} s")
        if recorded < len(set(plans)) * len(options.batch):
            notice("runs that could not be recorded are launched kernel by kernel")
        return found

    opening = SessionOptions(options.backend, engines=root, static=False)
    graphs = graphs_of(bundle, opening, _plans(targets))
    if not graphs.native:
        notice("the ops are not compiled for CUDA, so the portable ones run")
    beside = []
    if other is not None:
        theirs = graphs_of(other.bundle, opening, _plans(other.targets))
        beside.append(Beside("other", theirs, other.targets))
    if options.beside is not None:
        cuda = graphs_of(
            bundle, SessionOptions(options.beside), _plans(targets), " in ONNX Runtime"
        )
        beside.append(Beside("cuda", cuda, targets))
    if root is not None and options.static_levels:
        fixed = engines.fixed_plans(bundle, root)
        levels = {name: target for name, target in targets.items() if target.plan in fixed}
        if levels:
            each = opening._replace(static=True)
            static = graphs_of(bundle, each, _plans(levels), " on engines of one plan")
            beside.append(Beside("static", static, levels))
        else:
            notice("nothing that is measured has an engine of its own plan")
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
        report.tensorrt = engines.described(bundle, root, static=options.static_levels)
        name, _, number = report.tensorrt.version.partition(" ")
        report.machine.versions[name] = number
    return Loaded(report, graphs, _agreeing(bundle, graphs, beside, report.lost))


def strangers(bundle: Bundle, graphs: Graphs, ready: Ready) -> list[str]:
    """Take out of PyTorch's what is another network than the bundle's, and say why."""
    lost = []
    for one, (worker, row) in list(ready.items()):
        (images,) = random_inputs(bundle, one.batch, 1)
        wanted = graphs.run(images, one.plan)[: len(worker.logits[row])]
        if (why := _stranger(worker.logits[row], wanted, one.plan)) is not None:
            lost.append(f"{one}: {why}")
            del ready[one]
    return lost


def _plans(targets: Mapping[str, Target]) -> list[Plan]:
    return [target.plan for target in targets.values()]


def _agreeing(
    bundle: Bundle, graphs: Graphs, beside: Sequence[Beside], lost: list[str]
) -> list[Beside]:
    """The same, but for levels at which something else comes out than of `graphs`.

    Another bundle may be another network: it is not asked.

    Args:
        lost: to add to, why a level is left out.
    """
    (given,) = random_inputs(bundle, 1, 1)
    found = []
    for who, other, targets in beside:
        kept = dict(targets)
        for level, target in targets.items() if who != "other" else ():
            answer = other.run(given, target.plan)
            why = _stranger(answer, graphs.run(given, target.plan), target.plan)
            if why is not None:
                called = "ONNX Runtime" if who == "cuda" else "engine of one plan"
                lost.append(f"{called}, {level}: {why}")
                del kept[level]
        found.append(Beside(who, other, kept))
    return found


def _stranger(found: Float, wanted: Float, plan: Plan) -> str | None:
    """Why an answer is of another network than the bundle's; None if it is not."""
    off = float("inf")
    if found.shape == wanted.shape:
        off = float(np.linalg.norm(found - wanted)) / max(float(np.linalg.norm(wanted)), 1e-6)
    # Written so that NaN counts.
    if off <= (REDUCED_OFF if any(plan) else OFF):
        return None
    return f"its logits are off by {off:.1e} of the bundle's norm"
