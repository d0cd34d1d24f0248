"""`tokenfold build`: build the TensorRT engines of a bundle."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.runtime.tensorrt import journal, plugins, target, variant
from tokenfold.runtime.tensorrt.builder import Builder
from tokenfold.runtime.tensorrt.plugins import PluginLibrary
from tokenfold.runtime.tensorrt.spec import (
    EngineError,
    EngineSpec,
    check_unchanged,
    engine_specs,
)
from tokenfold.runtime.tensorrt.store import VARIABLE, EngineStore, StoredEngine, engines_folder
from tokenfold.runtime.tensorrt.target import BuildTarget
from tokenfold.runtime.tensorrt.variant import NAMES, TensorRTError, TensorRTVariant

CURRENT = "current"

EngineProgressCallback = Callable[[str, float, str], None]
"""Receives the engine's title, the completed fraction of all engines (0 to 1), and the phase."""


class BuildResult(NamedTuple):
    """An engine of a bundle, and its build time.

    Attributes:
        seconds: build time; None if the engine existed already.
    """

    spec: EngineSpec
    stored: StoredEngine
    seconds: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 2 for an error that the user can fix, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    with _log_level(options.verbose):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        bundle = Bundle.open(options.bundle)
        loaded_variant = variant.load(options.tensorrt)
        plugin_library = None if options.no_plugins else plugins.register(loaded_variant)
        if plugin_library is None and not options.no_plugins:
            raise TensorRTError(
                "the plugins are not built, and Tokenfold does not load engines without them: "
                "run make plugins-tensorrt, or use --no-plugins to build for other programs"
            )
        specs = [
            spec
            for name in options.device
            for spec in engine_specs(
                bundle,
                _target(name, loaded_variant, plugin_library),
                precision="bf16" if options.precision == "bf16" else None,
                static=options.static_levels,
            )
        ]
        root = options.engines or engines_folder()
        with _progress_display(options.json) as display, _interrupts() as check_interrupt:

            def progress(engine: str, done: float, phase: str) -> None:
                check_interrupt()
                display(engine, done, phase)

            results = build(
                bundle,
                root,
                loaded_variant,
                plugin_library,
                specs,
                anew=options.anew,
                progress=progress,
            )
    except (BundleError, EngineError, TensorRTError, OSError, RuntimeError) as error:
        # Join TensorRT's messages of several lines to one.
        print(f"tokenfold build: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tokenfold build: interrupted; finished engines are kept", file=sys.stderr)
        return 130
    if not options.json:
        _report(bundle, results)
    return 0


def build(
    bundle: Bundle,
    root: Path,
    loaded_variant: TensorRTVariant,
    plugin_library: PluginLibrary | None,
    specs: Sequence[EngineSpec],
    *,
    anew: bool = False,
    progress: EngineProgressCallback = lambda _engine, _done, _phase: None,
) -> list[BuildResult]:
    """Build the engines of a bundle that do not exist yet.

    Args:
        root: the folder of the engines of all bundles.
        specs: engines of `bundle`, for `loaded_variant` and `plugin_library`.
        anew: also build engines that exist.
        progress: called during the build. An exception that it raises ends the build.

    Raises:
        TensorRTError: an engine cannot be built; engines built before it are kept.
        EngineError: the bundle was replaced during the build.
        OSError: engines cannot be written.
    """
    store = EngineStore(root, bundle)
    store.check_writable()
    results: list[BuildResult] = []
    for index, spec in enumerate(specs):

        def engine_progress(
            share: float, phase: str, index: int = index, spec: EngineSpec = spec
        ) -> None:
            progress(_title(bundle, spec), (index + share) / len(specs), phase)

        with contextlib.suppress(EngineError):
            if not anew:
                results.append(BuildResult(spec, store.verify(spec), None))
                engine_progress(1.0, "Already built")
                continue
        engine_progress(0.0, "Starting")
        start = time.monotonic()
        content = Builder(loaded_variant, plugin_library).build(
            bundle.folder / spec.graph,
            spec,
            # TensorRT for RTX times no kernels during a build, but on the GPU that runs the engine.
            timing_cache=(
                None if loaded_variant.aot_architectures else root / spec.target.timing_cache_file
            ),
            progress=engine_progress,
        )
        check_unchanged(bundle, spec)
        stored = store.write(spec, content)
        results.append(BuildResult(spec, stored, time.monotonic() - start))
    return results


def _target(
    name: str, loaded_variant: TensorRTVariant, plugin_library: PluginLibrary | None
) -> BuildTarget:
    if name == CURRENT:
        return target.current_target(loaded_variant, plugin_library)
    return target.aot_target(loaded_variant, plugin_library, name)


def _title(bundle: Bundle, spec: EngineSpec) -> str:
    """Return a readable name of an engine: graph, precision, and levels of a fixed plan."""
    parts = [Path(spec.graph).stem, spec.precision]
    if spec.plan is not None:
        levels = bundle.manifest.levels
        parts.append("/".join(name for name in levels if levels[name].plan == spec.plan))
    return " ".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenfold build",
        description="Build the TensorRT engines of a bundle: one per graph, for all levels and "
        "for batches of 1 to 128. Engines that exist and match are kept.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=_path, help="the bundle's folder")
    parser.add_argument(
        "--device",
        type=_gpus,
        default=[CURRENT],
        metavar="GPU,...",
        help="GPUs to build for: current (default) for the GPU of this machine; or, with "
        "tensorrt-rtx, architectures such as sm_89,sm_120, which need no GPU",
    )
    parser.add_argument(
        "--engines",
        type=_path,
        metavar="DIR",
        help="folder for the engines of all bundles, the same as for `tokenfold serve` (default: "
        f"the value of {VARIABLE}, or a folder in the user's cache directory)",
    )
    parser.add_argument(
        "--static-levels",
        action="store_true",
        help="also build one engine per level, which is preferred for that level; each one holds "
        "its own copy of the weights, so measure whether it pays off",
    )
    parser.add_argument(
        "--precision",
        choices=["own", "bf16"],
        default="own",
        help="own (default): the bundle's precision; bf16: convert a float16 bundle to bfloat16 "
        "engines, which are preferred over float16 ones",
    )
    parser.add_argument(
        "--no-plugins",
        action="store_true",
        help="build the portable bodies of the ops, for programs without Tokenfold's plugins",
    )
    parser.add_argument(
        "--tensorrt",
        choices=NAMES,
        help="TensorRT package to build with (default: the first that is installed)",
    )
    parser.add_argument(
        "--anew", action="store_true", help="also build engines that exist and match"
    )
    parser.add_argument(
        "--json", action="store_true", help="write progress as JSON lines, for programs"
    )
    parser.add_argument("--verbose", action="store_true", help="show all messages of TensorRT")
    return parser


def _path(text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not text:
        raise argparse.ArgumentTypeError("the folder name is empty")
    return path


def _gpus(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of GPUs")
    return names


@contextlib.contextmanager
def _log_level(verbose: bool) -> Iterator[None]:
    """Show TensorRT's messages only if `verbose`: the command's error messages include errors."""
    previous_level = journal.logger.level
    journal.logger.setLevel(logging.DEBUG if verbose else logging.CRITICAL)
    if verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(message)s")
    try:
        yield
    finally:
        journal.logger.setLevel(previous_level)


@contextlib.contextmanager
def _progress_display(as_json: bool) -> Iterator[EngineProgressCallback]:
    """Show progress as a bar, or as JSON lines."""
    if as_json:
        yield lambda engine, done, phase: print(
            json.dumps({"engine": engine, "done": done, "phase": phase}), flush=True
        )
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("engines", total=1.0)
        yield lambda engine, done, phase: bar.update(
            task, description=f"{engine}: {phase}", completed=done
        )


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Defer Ctrl-C: TensorRT would swallow a KeyboardInterrupt that is raised inside it.

    A second Ctrl-C ends the process.

    Yields:
        A function that raises KeyboardInterrupt if Ctrl-C was pressed.
    """
    interrupted = threading.Event()

    def handle(_: int, __: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def check() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    previous_handler = signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous_handler)


def _report(bundle: Bundle, results: Sequence[BuildResult]) -> None:
    print(f"{bundle.folder}: {bundle.manifest.name}, for {results[0].spec.target.tensorrt}")
    for spec, stored, seconds in results:
        status = "already built" if seconds is None else f"built in {seconds:.0f} s"
        title, gpu = _title(bundle, spec), spec.target.gpu
        print(f"  {title:24} {gpu:20} {stored.bytes / 1e6:9.1f} MB  {status}")
    print(f"  in {results[0].stored.path.parent}")


if __name__ == "__main__":
    sys.exit(main())
