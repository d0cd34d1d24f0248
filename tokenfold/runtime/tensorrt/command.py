"""`tokenfold build`: engines of TensorRT from a bundle."""

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
from tokenfold.runtime.tensorrt import flavour, journal, plugins, target
from tokenfold.runtime.tensorrt.builder import Builder
from tokenfold.runtime.tensorrt.engines import VARIABLE, Built, Engines, folder
from tokenfold.runtime.tensorrt.flavour import NAMES, Flavour, TensorRtError
from tokenfold.runtime.tensorrt.origin import EngineError, Origin, Target, check_unchanged, origins
from tokenfold.runtime.tensorrt.plugins import Plugins

CURRENT = "current"

Tell = Callable[[str, float, str], None]
"""Told which engine is built, how much of all is done, 0 to 1, and what is being done."""


class Done(NamedTuple):
    """An engine of a bundle.

    Attributes:
        seconds: that it took to build; None if it was there.
    """

    origin: Origin
    built: Built
    seconds: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, 2 for what the user can mend."""
    options = _parser().parse_args(arguments)
    with _lines(options.verbose):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        bundle = Bundle.open(options.bundle)
        own = flavour.load(options.tensorrt)
        registered = None if options.no_plugins else plugins.registered(own)
        if registered is None and not options.no_plugins:
            raise TensorRtError(
                "the plugins are not built, and nothing here loads an engine without them: "
                "make plugins-tensorrt, or --no-plugins to build for other programs"
            )
        wanted = [
            origin
            for name in options.device
            for origin in origins(
                bundle,
                _target(name, own, registered),
                precision="bf16" if options.precision == "bf16" else None,
                static=options.static_levels,
            )
        ]
        root = options.engines or folder()
        with _telling(options.json) as tell, _interrupts() as check:

            def advance(engine: str, done: float, phase: str) -> None:
                check()
                tell(engine, done, phase)

            done = build(bundle, root, own, registered, wanted, anew=options.anew, tell=advance)
    except (BundleError, EngineError, TensorRtError, OSError, RuntimeError) as error:
        # One line, though TensorRT's come in several.
        print(f"tokenfold build: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tokenfold build: interrupted; what was built is kept", file=sys.stderr)
        return 130
    if not options.json:
        _report(bundle, done)
    return 0


def build(
    bundle: Bundle,
    root: Path,
    own: Flavour,
    registered: Plugins | None,
    wanted: Sequence[Origin],
    *,
    anew: bool = False,
    tell: Tell = lambda _engine, _done, _phase: None,
) -> list[Done]:
    """Build those engines of a bundle that are not there yet.

    Args:
        root: the folder of all bundles' engines.
        wanted: of the bundle, for a TensorRT and with plugins that are these.
        anew: build also those that are there.
        tell: told of the progress. What it raises ends the build.

    Raises:
        TensorRtError: an engine cannot be built; those before it are kept.
        EngineError: the bundle is replaced meanwhile.
        OSError: engines cannot be written.
    """
    engines = Engines(root, bundle)
    engines.ready()
    done: list[Done] = []
    for at, origin in enumerate(wanted):

        def advance(share: float, phase: str, at: int = at, origin: Origin = origin) -> None:
            tell(_title(bundle, origin), (at + share) / len(wanted), phase)

        with contextlib.suppress(EngineError):
            if not anew:
                engines.read(origin)
                done.append(Done(origin, engines.find(origin), None))
                advance(1.0, "It is there")
                continue
        advance(0.0, "Starting")
        begun = time.monotonic()
        content = Builder(own, registered).build(
            bundle.folder / origin.graph,
            origin,
            # TensorRT for RTX times nothing when it builds: it does so where the engine runs.
            timings=None if own.ahead else root / origin.target.timings,
            advance=advance,
        )
        check_unchanged(bundle, origin)
        done.append(Done(origin, engines.write(origin, content), time.monotonic() - begun))
    return done


def _target(name: str, own: Flavour, registered: Plugins | None) -> Target:
    if name == CURRENT:
        return target.here(own, registered)
    return target.ahead(own, registered, name)


def _title(bundle: Bundle, origin: Origin) -> str:
    """Which engine of its bundle it is, for people."""
    parts = [Path(origin.graph).stem, origin.precision]
    if origin.plan is not None:
        levels = bundle.manifest.levels
        parts.append("/".join(name for name in levels if levels[name].plan == origin.plan))
    return " ".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenfold build",
        description="Build the TensorRT engines of a bundle: one of each graph, for every level "
        "and for batches of 1 to 128. Those that are there and fit are kept.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=_path, help="the bundle's folder")
    parser.add_argument(
        "--device",
        type=_gpus,
        default=[CURRENT],
        metavar="GPU,...",
        help="the GPU that is here (current, the default), or with tensorrt-rtx kinds that need "
        "not be, such as sm_89,sm_120",
    )
    parser.add_argument(
        "--engines",
        type=_path,
        metavar="DIR",
        help="where the engines of all bundles are kept, as for `tokenfold serve` (default: what "
        f"{VARIABLE} names, or one in the home directory)",
    )
    parser.add_argument(
        "--static-levels",
        action="store_true",
        help="also an engine for the plan of each level alone, which is then taken for it: to be "
        "measured, for each has weights of its own",
    )
    parser.add_argument(
        "--precision",
        choices=["own", "bf16"],
        default="own",
        help="bf16 makes bfloat16 of a float16 bundle, and is then preferred to it (default: the "
        "bundle's)",
    )
    parser.add_argument(
        "--no-plugins",
        action="store_true",
        help="build the portable bodies of the ops, for runtimes without our plugins",
    )
    parser.add_argument(
        "--tensorrt", choices=NAMES, help="which one (default: the first that is installed)"
    )
    parser.add_argument(
        "--anew", action="store_true", help="build also what is there and fits already"
    )
    parser.add_argument(
        "--json", action="store_true", help="write the progress as lines of JSON, for programs"
    )
    parser.add_argument("--verbose", action="store_true", help="write all that TensorRT says")
    return parser


def _path(text: str) -> Path:
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if not text:
        raise argparse.ArgumentTypeError("an empty name is no folder")
    return found


def _gpus(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not GPUs with commas between")
    return found


@contextlib.contextmanager
def _lines(verbose: bool) -> Iterator[None]:
    """What TensorRT writes is for those who ask: its errors come in the message."""
    before = journal.logger.level
    journal.logger.setLevel(logging.DEBUG if verbose else logging.CRITICAL)
    if verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(message)s")
    try:
        yield
    finally:
        journal.logger.setLevel(before)


@contextlib.contextmanager
def _telling(as_json: bool) -> Iterator[Tell]:
    """Shows the progress: a bar, or lines of JSON."""
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
    """Ctrl-C, noted: raised inside TensorRT it would be lost. What it gives raises it then.

    A second one ends the process.
    """
    noted = threading.Event()

    def note(_: int, __: FrameType | None) -> None:
        noted.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def check() -> None:
        if noted.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _report(bundle: Bundle, done: Sequence[Done]) -> None:
    print(f"{bundle.folder}: {bundle.manifest.name}, for {done[0].origin.target.tensorrt}")
    for origin, built, seconds in done:
        took = "was there" if seconds is None else f"built in {seconds:.0f} s"
        title, gpu = _title(bundle, origin), origin.target.gpu
        print(f"  {title:24} {gpu:20} {built.bytes / 1e6:9.1f} MB  {took}")
    print(f"  in {done[0].built.path.parent}")


if __name__ == "__main__":
    sys.exit(main())
