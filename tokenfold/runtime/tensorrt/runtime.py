"""Select and open the engines of a bundle for the GPU of this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal, TypeVar

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import CudaError, Stream, free_on_exit
from tokenfold.runtime.tensorrt import plugins, target, variant
from tokenfold.runtime.tensorrt.engine import Engine, EngineRejectedError
from tokenfold.runtime.tensorrt.runner import EngineRunner
from tokenfold.runtime.tensorrt.spec import EngineError, EngineSpec, engine_specs
from tokenfold.runtime.tensorrt.store import EngineStore
from tokenfold.runtime.tensorrt.target import BuildTarget
from tokenfold.runtime.tensorrt.variant import TensorRTError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def missing() -> str | None:
    """Return the reason why this process cannot run engines; None if it can."""
    if (reason := device.missing()) is not None:
        return reason
    try:
        loaded_variant = variant.load()
        plugin_library = plugins.register(loaded_variant)
        if plugin_library is None:
            return "the TensorRT plugins are not compiled: run make plugins-tensorrt"
        target.current_target(loaded_variant, plugin_library)
    except (TensorRTError, CudaError, OSError) as error:
        return str(error)
    return None


def missing_engines(bundle: Bundle, folder: Path) -> list[str]:
    """Return the file names of engines that must be built for this GPU, TensorRT and plugins.

    Args:
        folder: the folder of the engines of all bundles.

    Raises:
        TensorRTError: see `missing`.
        EngineError: TensorRT cannot run the bundle.
    """
    store, build_target = EngineStore(folder, bundle), _current_target()
    return [
        # The last candidate has the bundle's precision, which is the default of a build.
        candidates[-1].file
        for candidates in _candidates(bundle, build_target).values()
        if all(_read_intact(store, store.verify, spec) is None for spec in candidates)
    ]


def select_engines(
    bundle: Bundle, graph: str, folder: Path, *, static: bool = True
) -> list[EngineSpec]:
    """Select the engines to run a graph with.

    The first is the engine for all plans, whether it exists or not; engines for single plans
    follow. An engine in bfloat16 is preferred over one in the bundle's precision, and an engine for
    a single plan is preferred for that plan: both exist only if a user had them built. A damaged
    engine is replaced by the next one that fits.

    Args:
        folder: the folder of the engines of all bundles.
        static: whether to select engines for single plans.

    Raises:
        TensorRTError: see `missing`.
        EngineError: TensorRT cannot run the bundle.
    """
    store = EngineStore(folder, bundle)
    return [spec for spec, _ in _select(bundle, graph, store, store.verify, static=static)]


def engine_opener(
    bundle: Bundle, graph: str, folder: Path, *, static: bool = True
) -> Callable[[Stream], EngineRunner]:
    """Return a function that opens the selected engines of a graph in a given stream.

    The arguments are those of `select_engines`. The returned function may raise:

    Raises:
        TensorRTError: see `missing`.
        EngineError: the engine is missing, damaged, or was built from another specification.
    """

    def open_runner(stream: Stream) -> EngineRunner:
        store = EngineStore(folder, bundle)
        with ExitStack() as undo:
            engines = []
            # Engines are loaded as they are read, so that host memory holds one at a time.
            for spec, intact in _select(bundle, graph, store, store.read, static=static):
                # If no engine is intact, reading the last candidate again raises the reason.
                content = store.read(spec) if intact is None else intact
                engines.append(free_on_exit(_load(store, spec, content), undo))
            runner = EngineRunner(engines, stream)
            undo.pop_all()
        return runner

    return open_runner


def _select(
    bundle: Bundle,
    graph: str,
    store: EngineStore,
    read: Callable[[EngineSpec], T],
    *,
    static: bool,
) -> Iterator[tuple[EngineSpec, T | None]]:
    """Yield the engines to run a graph with, each read once; see `select_engines`.

    Args:
        read: `EngineStore.read` or `EngineStore.verify`, of `store`.

    Yields:
        The engine for all plans, with the result of `read` or None if no such engine is intact;
        then the intact engines for single plans.
    """
    build_target = _current_target()
    for spec in _candidates(bundle, build_target)[graph]:
        if (result := _read_intact(store, read, spec)) is not None:
            break
    yield spec, result
    precision: Literal["bf16"] | None = "bf16" if spec.precision == "bf16" else None
    for static_spec in engine_specs(bundle, build_target, precision=precision, static=static):
        if static_spec.graph != graph or static_spec.plan is None:
            continue
        if (result := _read_intact(store, read, static_spec)) is not None:
            yield static_spec, result


def _read_intact(store: EngineStore, read: Callable[[EngineSpec], T], spec: EngineSpec) -> T | None:
    """Return the result of `read`; None if the engine is missing or damaged."""
    try:
        store.find(spec)
    except EngineError:
        return None
    try:
        return read(spec)
    except EngineError as error:
        logger.warning("ignoring a damaged engine: %s", error)
        return None


def _load(store: EngineStore, spec: EngineSpec, content: bytes) -> Engine:
    loaded_variant = variant.load()
    plugin_library = plugins.register(loaded_variant)
    try:
        return Engine(loaded_variant, plugin_library, spec, content)
    except EngineRejectedError:
        # TensorRT would reject the file again, so delete it: then it is built again.
        store.discard(spec)
        raise


def _current_target() -> BuildTarget:
    loaded_variant = variant.load()
    return target.current_target(loaded_variant, plugins.register(loaded_variant))


def _candidates(bundle: Bundle, build_target: BuildTarget) -> dict[str, list[EngineSpec]]:
    """Return, by graph, the usable engines for all plans, the preferred one first."""
    candidates: dict[str, list[EngineSpec]] = {}
    for spec in _all_precisions(bundle, build_target):
        candidates.setdefault(spec.graph, []).append(spec)
    return candidates


def _all_precisions(bundle: Bundle, build_target: BuildTarget) -> Iterable[EngineSpec]:
    with suppress(EngineError):
        yield from engine_specs(bundle, build_target, precision="bf16")
    yield from engine_specs(bundle, build_target)
