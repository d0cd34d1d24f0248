"""The engines that a bench of TensorRT measures: they are built first where they are missing.

In a process of its own, so that what a builder takes of memory counts nowhere.
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


def prepare(bundle: Bundle, root: Path, *, static: bool, stage: Stage) -> None:
    """Build what is missing.

    Args:
        root: of the engines of all bundles.
        static: whether an engine for the plan of each level is wanted too.

    Raises:
        BenchError: an engine cannot be built.
        RuntimeError: TensorRT cannot run such a bundle.
    """
    if runtime.missing_engines(bundle, root):
        _build(bundle, root, (), stage)
    if static and _without_static(bundle, root):
        bfloat16 = any(one.precision == "bf16" for one in _planned(bundle, root))
        more = ("--precision", "bf16") if bfloat16 else ()
        _build(bundle, root, ("--static-levels", *more), stage)


def described(bundle: Bundle, root: Path, *, static: bool) -> TensorRt:
    """What will run, for the report.

    Raises:
        EngineError: an engine is missing, or was built from something else.
    """
    engines = EngineStore(root, bundle)
    of_graphs = [
        runtime.select_engines(bundle, graph, root, static=static) for graph in _graphs(bundle)
    ]
    target = of_graphs[0][0].target

    def files(origins: Iterable[EngineSpec]) -> list[EngineFile]:
        return [
            EngineFile(
                graph=one.graph,
                precision=one.precision,
                level=None if one.plan is None else _levels(bundle, one.plan),
                bytes=engines.find(one).bytes,
            )
            for one in origins
        ]

    return TensorRt(
        version=target.tensorrt,
        gpu=target.gpu,
        plugins=target.plugins,
        engines=files(one for graph in of_graphs for one in graph),
        one=engine_set(files(only(bundle, root, static=False))),
        each=engine_set(files(only(bundle, root, static=True))) if static else None,
    )


def only(bundle: Bundle, root: Path, *, static: bool) -> list[EngineSpec]:
    """The least that runs all levels.

    Args:
        static: engines of one plan each, rather than one of all plans; where a graph takes no plan
            there is one engine in either case.
    """
    found = []
    for graph in _graphs(bundle):
        first, *fixed = runtime.select_engines(bundle, graph, root, static=static)
        found += fixed or [first]
    return found


def fixed_plans(bundle: Bundle, root: Path) -> set[Plan]:
    """Plans that have an engine of their own."""
    return {one.plan for one in only(bundle, root, static=True) if one.plan is not None}


def _graphs(bundle: Bundle) -> tuple[str, ...]:
    return GRAPHS[bundle.manifest.kind]


def _planned(bundle: Bundle, root: Path) -> list[EngineSpec]:
    """The engines of all plans of those graphs that take a plan."""
    return [one for one in only(bundle, root, static=False) if takes_plan(one.graph)]


def _without_static(bundle: Bundle, root: Path) -> bool:
    plans = {level.plan for level in bundle.manifest.levels.values()}
    return not plans <= fixed_plans(bundle, root)


def _levels(bundle: Bundle, plan: Plan) -> str:
    levels = bundle.manifest.levels
    return "/".join(name for name in levels if levels[name].plan == plan)


def _build(bundle: Bundle, root: Path, more: tuple[str, ...], stage: Stage) -> None:
    """Build engines, and show how far that is; those that are done are kept, whatever comes."""
    notice(
        f"{bundle.manifest.name}: engines are built, which takes minutes; they are kept in {root}"
    )
    step, shown = stage("engines", 100), 0

    def told(progress: Progress) -> None:
        nonlocal shown
        while shown < int(100 * progress.done):
            step()
            shown += 1

    command = process.command_line(bundle.folder, root, *more)
    try:
        process.build(command, told, stopping=threading.Event())
    except BuildError as error:
        raise BenchError(
            f"the engines of {bundle.manifest.name} cannot be built: {error}"
        ) from error
