"""A bundle's engines in this process: whether they can run, which are there, and opening them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import CudaError, Stream, kept
from tokenfold.runtime.tensorrt import flavour, plugins, target
from tokenfold.runtime.tensorrt.engine import Engine, RefusedError
from tokenfold.runtime.tensorrt.engines import Engines
from tokenfold.runtime.tensorrt.flavour import Flavour, TensorRtError
from tokenfold.runtime.tensorrt.origin import EngineError, Origin, Target, origins
from tokenfold.runtime.tensorrt.plugins import Plugins
from tokenfold.runtime.tensorrt.runner import EngineRunner

logger = logging.getLogger(__name__)


def missing() -> str | None:
    """Why this process cannot run engines, or None where it can."""
    if (why := device.missing()) is not None:
        return why
    try:
        own = flavour.load()
        registered = plugins.registered(own)
        if registered is None:
            return "the plugins for TensorRT are not compiled: make plugins-tensorrt"
        target.here(own, registered)
    except (TensorRtError, CudaError, OSError) as error:
        return str(error)
    return None


def unbuilt(bundle: Bundle, folder: Path) -> list[str]:
    """The files of engines that are still to be built for this GPU, TensorRT and these plugins.

    Args:
        folder: of the engines of all bundles.

    Raises:
        TensorRtError: see `missing`.
        EngineError: TensorRT cannot run such a bundle.
    """
    engines, here = Engines(folder, bundle), _here()
    return [
        wanted[-1].file  # which is built where nobody asks for another precision
        for wanted in _wanted(bundle, here).values()
        if not any(_is_whole(engines, origin) for origin in wanted)
    ]


def chosen(bundle: Bundle, graph: str, folder: Path, *, static: bool = True) -> list[Origin]:
    """The engines that are taken for a graph: first that of all plans, whether it is there or not.

    An engine in bfloat16 is taken before one in the bundle's own precision, and one of a single
    plan for that plan: both are there only where somebody had them built. Where one of them is
    damaged, others do without it.

    Args:
        folder: of the engines of all bundles.
        static: whether those of single plans are taken.

    Raises:
        TensorRtError: see `missing`.
        EngineError: TensorRT cannot run such a bundle.
    """
    engines, here = Engines(folder, bundle), _here()
    wanted = _wanted(bundle, here)[graph]
    # The last one, if none is there: what is wrong with it is what to say.
    first = next((one for one in wanted if _is_whole(engines, one)), wanted[-1])
    bfloat16 = first.precision == "bf16"
    fixed = [
        one
        for one in origins(bundle, here, precision="bf16" if bfloat16 else None, static=static)
        if one.graph == graph and one.plan is not None and _is_whole(engines, one)
    ]
    return [first, *fixed]


def opener(
    bundle: Bundle, graph: str, folder: Path, *, static: bool = True
) -> Callable[[Stream], EngineRunner]:
    """What opens the engines of a graph, in the stream that it is given; see `chosen`.

    Raises:
        TensorRtError: see `missing`.
        EngineError: the engine is missing, damaged, or was built from something else.
    """

    def opened(stream: Stream) -> EngineRunner:
        own = flavour.load()
        registered = plugins.registered(own)
        engines = Engines(folder, bundle)
        wanted = chosen(bundle, graph, folder, static=static)
        with ExitStack() as undo:
            loaded = [kept(_loaded(engines, one, own, registered), undo) for one in wanted]
            runner = EngineRunner(loaded, stream)
            undo.pop_all()
        return runner

    return opened


def _loaded(engines: Engines, origin: Origin, own: Flavour, registered: Plugins | None) -> Engine:
    content = engines.read(origin)
    try:
        return Engine(own, registered, origin, content)
    except RefusedError:
        # It will not be taken the next time either, so it is to be built anew.
        engines.discard(origin)
        raise


def _here() -> Target:
    own = flavour.load()
    return target.here(own, plugins.registered(own))


def _wanted(bundle: Bundle, here: Target) -> dict[str, list[Origin]]:
    """By graph, the engines of all plans that would do, the preferred first."""
    found: dict[str, list[Origin]] = {}
    for one in _both(bundle, here):
        found.setdefault(one.graph, []).append(one)
    return found


def _both(bundle: Bundle, here: Target) -> Iterable[Origin]:
    with suppress(EngineError):
        yield from origins(bundle, here, precision="bf16")
    yield from origins(bundle, here)


def _is_whole(engines: Engines, origin: Origin) -> bool:
    """Whether it is there, and is what was written."""
    try:
        engines.find(origin)
    except EngineError:
        return False
    try:
        engines.read(origin)
    except EngineError as error:
        logger.warning("an engine is left out: %s", error)
        return False
    return True
