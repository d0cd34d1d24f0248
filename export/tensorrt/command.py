"""`tokenfold build`: engines of TensorRT from a bundle."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from export.bundle import Bundle, BundleError
from export.tensorrt import flavour, plugins, target
from export.tensorrt.builder import Builder
from export.tensorrt.engines import Built, EngineError, Engines, Origin, Target, origins
from export.tensorrt.flavour import NAMES, Flavour, TensorRtError
from export.tensorrt.plugins import Plugins

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
    # The errors that TensorRT writes come in the message, the rest is for those who ask.
    logging.getLogger("export.tensorrt.journal").setLevel(
        logging.DEBUG if options.verbose else logging.CRITICAL
    )
    if options.verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(message)s")
    try:
        bundle = Bundle.open(options.bundle)
        own = flavour.load(options.tensorrt)
        registered = None if options.no_plugins else plugins.registered(own)
        if registered is None and not options.no_plugins:
            print(
                "the plugins are not built (make plugins-tensorrt), so the portable bodies of the "
                "ops are built: more slowly, and they run more slowly",
                file=sys.stderr,
            )
        wanted = [
            origin
            for name in options.device.split(",")
            for origin in origins(
                bundle,
                _target(name, own, registered),
                precision="bf16" if options.precision == "bf16" else None,
                static=options.static_levels,
            )
        ]
        with _telling(options.json) as tell:
            done = build(bundle, options.engines, own, registered, wanted, options.anew, tell)
    except (BundleError, EngineError, TensorRtError, OSError) as error:
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
    anew: bool,
    tell: Tell,
) -> list[Done]:
    """Build those engines of a bundle that are not there yet.

    Args:
        root: the folder of all bundles' engines.
        wanted: of the bundle, for a TensorRT and with plugins that are these.
        anew: build also those that are there.

    Raises:
        TensorRtError: an engine cannot be built; those before it are kept.
        OSError: it cannot be written.
    """
    engines = Engines(root, bundle)
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
        builder = Builder(own, registered, ahead=origin.target.gpu in own.ahead)
        content = builder.build(
            bundle.folder / origin.graph,
            origin,
            timings=root / origin.target.timings,
            advance=advance,
        )
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
        default=CURRENT,
        metavar="GPU,...",
        help="the GPU that is here (current, the default), or with tensorrt-rtx kinds that need "
        "not be, such as sm_89,sm_120",
    )
    parser.add_argument(
        "--engines",
        type=_path,
        default=target.folder(),
        metavar="DIR",
        help="where the engines of all bundles are kept, as for `tokenfold serve` (default: "
        "%(default)s)",
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
    return Path(text).expanduser()


class _telling:  # noqa: N801
    """Shows the progress: a bar, or lines of JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=as_json,
        )

    def __enter__(self) -> Tell:
        self._bar.start()
        task = self._bar.add_task("engines", total=1.0)

        def tell(engine: str, done: float, phase: str) -> None:
            if self._as_json:
                print(json.dumps({"engine": engine, "done": done, "phase": phase}), flush=True)
            else:
                self._bar.update(task, description=f"{engine}: {phase}", completed=done)

        return tell

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _report(bundle: Bundle, done: Sequence[Done]) -> None:
    print(f"{bundle.folder}: {bundle.manifest.name}, for {done[0].origin.target.tensorrt}")
    for origin, built, seconds in done:
        took = "was there" if seconds is None else f"built in {seconds:.0f} s"
        title, gpu = _title(bundle, origin), origin.target.gpu
        print(f"  {title:24} {gpu:20} {built.bytes / 1e6:9.1f} MB  {took}")
    print(f"  in {done[0].built.path.parent}")


if __name__ == "__main__":
    sys.exit(main())
