"""TensorRT engines that a bench measures; missing engines are built first.

A separate process builds them, so that the builder's memory is not measured.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from tokenfold.bench.engine_report import EngineFile, TensorRt, engine_set
from tokenfold.bench.stages import BenchError, Stage, notice
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import GRAPHS
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.tensorrt import process, runtime
from tokenfold.runtime.tensorrt.process import BuildError, Progress
from tokenfold.runtime.tensorrt.profiles import takes_plan
from tokenfold.runtime.tensorrt.spec import EngineSpec
from tokenfold.runtime.tensorrt.store import EngineStore


def build_missing(bundle: Bundle, root: Path, *, static: bool, stage: Stage) -> None:
    """Build the engines that are missing.

    Args:
        root: folder of the engines of all bundles.
        static: also build an engine for the plan of each level.

    Raises:
        BenchError: an engine cannot be built.
        RuntimeError: TensorRT cannot run the bundle.
    """
    if runtime.missing_engines(bundle, root):
        _build(bundle, root, (), stage)
    if static and _lacks_single_plan_engines(bundle, root):
        bfloat16 = any(spec.precision == "bf16" for spec in _any_plan_engines(bundle, root))
        arguments = ("--precision", "bf16") if bfloat16 else ()
        _build(bundle, root, ("--static-levels", *arguments), stage)


def describe(bundle: Bundle, root: Path, *, static: bool) -> TensorRt:
    """Describe the engines that will run, for the report.

    Raises:
        EngineError: an engine is missing, or does not match its specification.
    """
    store = EngineStore(root, bundle)
    specs_by_graph = [
        runtime.select_engines(bundle, graph, root, static=static) for graph in _graphs(bundle)
    ]
    target = specs_by_graph[0][0].target

    def files(specs: Iterable[EngineSpec]) -> list[EngineFile]:
        return [
            EngineFile(
                graph=spec.graph,
                precision=spec.precision,
                level=None if spec.plan is None else _level_names(bundle, spec.plan),
                bytes=store.find(spec).bytes,
            )
            for spec in specs
        ]

    return TensorRt(
        version=target.tensorrt,
        gpu=target.gpu,
        plugins=target.plugins,
        engines=files(spec for specs in specs_by_graph for spec in specs),
        one=engine_set(files(minimal_engines(bundle, root, static=False))),
        each=engine_set(files(minimal_engines(bundle, root, static=True))) if static else None,
    )


def minimal_engines(bundle: Bundle, root: Path, *, static: bool) -> list[EngineSpec]:
    """Return the smallest set of engines that runs all levels.

    Args:
        static: choose engines for a single plan instead of engines for all plans. A graph that
            takes no plan has one engine in either case.
    """
    specs = []
    for graph in _graphs(bundle):
        any_plan, *single_plans = runtime.select_engines(bundle, graph, root, static=static)
        specs += single_plans or [any_plan]
    return specs


def fixed_plans(bundle: Bundle, root: Path) -> set[Plan]:
    """Return the plans that have an engine of their own."""
    return {
        spec.plan for spec in minimal_engines(bundle, root, static=True) if spec.plan is not None
    }


def _graphs(bundle: Bundle) -> tuple[str, ...]:
    return GRAPHS[bundle.manifest.kind]


def _any_plan_engines(bundle: Bundle, root: Path) -> list[EngineSpec]:
    """Return the engines for all plans, of the graphs that take a plan."""
    return [spec for spec in minimal_engines(bundle, root, static=False) if takes_plan(spec.graph)]


def _lacks_single_plan_engines(bundle: Bundle, root: Path) -> bool:
    plans = {level.plan for level in bundle.manifest.levels.values()}
    return not plans <= fixed_plans(bundle, root)


def _level_names(bundle: Bundle, plan: Plan) -> str:
    levels = bundle.manifest.levels
    return "/".join(name for name in levels if levels[name].plan == plan)


def _build(bundle: Bundle, root: Path, arguments: tuple[str, ...], stage: Stage) -> None:
    """Build engines and show the progress; finished engines are kept even if a later one fails."""
    notice(
        f"{bundle.manifest.name}: building engines, which takes minutes; they are kept in {root}"
    )
    step, shown_percent = stage("engines", 100), 0

    def show_progress(progress: Progress) -> None:
        nonlocal shown_percent
        while shown_percent < int(100 * progress.done):
            step()
            shown_percent += 1

    command = process.command_line(bundle.folder, root, *arguments)
    try:
        process.build(command, show_progress, stopping=threading.Event())
    except BuildError as error:
        raise BenchError(
            f"the engines of {bundle.manifest.name} cannot be built: {error}"
        ) from error
