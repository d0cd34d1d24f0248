"""What the service costs: its throughput beside that of the bare session, level by level.

python -m load_tests.served_vs_bare models/demo/bundles/cifar10

The two take turns, so that whatever else the machine does touches both. Only one runs at a time.
Of a dual encoder they embed images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from load_tests.arguments import add_bounds, between
from load_tests.bare import Bare, bare_session
from load_tests.classify import load_requests
from load_tests.client import post
from load_tests.images import jpeg, synthetic
from load_tests.load import Report
from load_tests.server import Service, serving
from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.runtime.machine import cores

GOAL = 0.95
MOST_ROUNDS = 100


@dataclass(frozen=True)
class Comparison:
    """One level, over all rounds.

    Attributes:
        bare, served: images per second; medians of the rounds.
        ratio: median of the rounds' served / bare. Each is of two neighbours in time.
        bare_cpu_ms, service_cpu_ms: processor time per image, of all cores; medians.
        generator_cpu: of the load generator, seconds per second; median. The service would have
            it otherwise.
        p50_ms, p99_ms: of the requests; medians.
        errors: of all rounds, by name.
    """

    level: str
    bare: float
    served: float
    ratio: float
    bare_cpu_ms: float
    service_cpu_ms: float
    generator_cpu: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The attributes, for json.dumps."""
        return asdict(self)


@dataclass(frozen=True)
class Round:
    """Two measurements of one level, one right after the other."""

    bare: Report
    served: Report


def compare(level: str, rounds: Sequence[Round]) -> Comparison:
    """Sum up the rounds of a level.

    Raises:
        ValueError: a round in which nothing was answered.
    """
    errors: dict[str, int] = {}
    for each in rounds:
        for error, count in each.served.errors.items():
            errors[error] = errors.get(error, 0) + count
        if not each.bare.images_per_second or not each.served.images_per_second:
            raise ValueError(f"level {level}: fewer than two answers in a round; errors: {errors}")
    bare, served = [each.bare for each in rounds], [each.served for each in rounds]
    return Comparison(
        level=level,
        bare=statistics.median(report.images_per_second for report in bare),
        served=statistics.median(report.images_per_second for report in served),
        ratio=statistics.median(
            each.served.images_per_second / each.bare.images_per_second for each in rounds
        ),
        # The bare session runs in the process that generates its load.
        bare_cpu_ms=statistics.median(
            report.generator_cpu / report.images_per_second * 1e3 for report in bare
        ),
        service_cpu_ms=statistics.median(
            (report.service_cpu or 0.0) / report.images_per_second * 1e3 for report in served
        ),
        generator_cpu=statistics.median(report.generator_cpu for report in served),
        p50_ms=statistics.median(report.p50_ms or 0.0 for report in served),
        p99_ms=statistics.median(report.p99_ms or 0.0 for report in served),
        errors=errors,
    )


def prepared_jpeg(bundle: Bundle) -> bytes:
    """A JPEG that the bundle's pre-processing need not resize."""
    preprocess = bundle.manifest.preprocess
    height, width = preprocess.size
    if preprocess.resize == "shorter" and preprocess.shorter_side is not None:
        height = width = preprocess.shorter_side
    return jpeg(synthetic(height, width))


def take_turns(
    bare: Bare,
    service: Service,
    levels: Sequence[str],
    image: bytes,
    *,
    path: str,
    model: str,
    rounds: int,
    seconds: float,
    warm_up: float,
    concurrency: int,
) -> dict[str, list[Round]]:
    """Measure every level in each of some rounds; the two sides swap their order each time.

    Args:
        path: of the route that takes images alone.
    """
    found: dict[str, list[Round]] = {level: [] for level in levels}
    console = Console(stderr=True)
    for number in track(range(rounds), "rounds", console=console, disable=not console.is_terminal):
        for level in levels:

            def serve(level: str = level) -> Report:
                return load_requests(
                    service.target,
                    [post(service.target, path, image, {"model": model, "level": level})],
                    concurrency=concurrency,
                    seconds=seconds,
                    warm_up=warm_up,
                    service_cpu=service.cpu_seconds,
                )

            if number % 2:
                served = serve()
                found[level].append(Round(bare.load(level, seconds, warm_up), served))
            else:
                found[level].append(Round(bare.load(level, seconds, warm_up), serve()))
    return found


def table(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons, for people."""
    shown = Table(box=SIMPLE, pad_edge=False)
    for title in (
        *("level", "bare\nimg/s", "served\nimg/s", "served\n/ bare"),
        *("bare\nCPU ms", "service\nCPU ms", "load\nCPU", "p50\nms", "p99\nms", "errors"),
    ):
        shown.add_column(title, justify="left" if title == "level" else "right", no_wrap=True)
    for row in comparisons:
        shown.add_row(
            row.level,
            f"{row.bare:.1f}",
            f"{row.served:.1f}",
            f"{row.ratio:.3f}",
            f"{row.bare_cpu_ms:.2f}",
            f"{row.service_cpu_ms:.2f}",
            f"{row.generator_cpu:.1%}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            str(sum(row.errors.values())),
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0 when every level reached the goal, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.served_vs_bare",
        description="Throughput of the service beside the bare session's, level by level.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--levels", nargs="+", metavar="LEVEL", help="default: all of the bundle")
    parser.add_argument(
        "--rounds", type=between(int, 1, MOST_ROUNDS), default=5, help="default: %(default)s"
    )
    add_bounds(parser, concurrency=4 * cores(), seconds=4.0)
    parser.add_argument("--photo", type=Path, help="send this file, which the service must resize")
    parser.add_argument(
        "--goal", type=between(float, 0.0, 1.0), default=GOAL, help="ratio; default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    options = parser.parse_args(arguments)
    try:
        bundle = Bundle.open(options.bundle)
        image = options.photo.read_bytes() if options.photo else prepared_jpeg(bundle)
    except (BundleError, OSError) as error:
        parser.error(str(error))
    kind = bundle.manifest.kind
    if kind == "pair":
        parser.error(f"{options.bundle} sees images with texts; this compares networks of images")
    levels = options.levels or list(bundle.manifest.levels)
    if unknown := [level for level in levels if level not in bundle.manifest.levels]:
        parser.error(f"unknown levels {unknown}; the bundle has {list(bundle.manifest.levels)}")
    with (
        bare_session(options.bundle, cores()) as bare,
        serving(["--bundles", str(options.bundle.resolve())]) as service,
    ):
        found = take_turns(
            bare,
            service,
            levels,
            image,
            path="/v1/embed" if kind == "dual" else "/v1/classify",
            model=bundle.manifest.name,
            rounds=options.rounds,
            seconds=options.seconds,
            warm_up=options.warm_up,
            concurrency=options.concurrency,
        )
    comparisons = [compare(level, rounds) for level, rounds in found.items()]
    if options.json:
        print(json.dumps({"levels": [row.as_json() for row in comparisons]}))
    else:
        # In a file or a pipe there is no width to keep to.
        Console(width=None if sys.stdout.isatty() else 120).print(table(comparisons))
    return 0 if all(row.ratio >= options.goal for row in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
