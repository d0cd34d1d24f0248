"""Compare the service's throughput with that of the bare session, level by level.

python -m load_tests.served_vs_bare models/demo/bundles/cifar10

The two sides alternate, so that other work on the machine affects both. Only one runs at a time.
For a dual encoder, both embed images.
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
from load_tests.bare import BareSession, bare_session
from load_tests.classify import load_requests
from load_tests.client import post
from load_tests.images import jpeg, synthetic
from load_tests.load import Report, Schedule, alternate, total_errors
from load_tests.server import Service, serving
from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.runtime.machine import cores

GOAL = 0.95
MAX_ROUNDS = 100


@dataclass(frozen=True)
class LevelComparison:
    """Results of a level over all rounds.

    Attributes:
        bare, served: images per second; medians of the rounds.
        ratio: median of the rounds' served / bare; each ratio is of consecutive measurements.
        bare_cpu_ms, service_cpu_ms: processor time per image, summed over all cores; medians.
        generator_cpu: processor seconds per second of the load generator, which the service
            cannot use; median.
        p50_ms, p99_ms: duration of a request; medians.
        errors: number of errors in all rounds, by name.
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
        """Return the attributes as a dict for json.dumps."""
        return asdict(self)


@dataclass(frozen=True)
class Round:
    """Two consecutive measurements of one level."""

    bare: Report
    served: Report


def compare(level: str, rounds: Sequence[Round]) -> LevelComparison:
    """Summarise the rounds of a level.

    Raises:
        ValueError: no request was answered in a round.
    """
    errors = total_errors(pair.served for pair in rounds)
    for pair in rounds:
        if not pair.bare.images_per_second or not pair.served.images_per_second:
            raise ValueError(f"level {level}: fewer than two answers in a round; errors: {errors}")
    bare, served = [pair.bare for pair in rounds], [pair.served for pair in rounds]
    return LevelComparison(
        level=level,
        bare=statistics.median(report.images_per_second for report in bare),
        served=statistics.median(report.images_per_second for report in served),
        ratio=statistics.median(
            pair.served.images_per_second / pair.bare.images_per_second for pair in rounds
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
    """Return a JPEG that the bundle's preprocessing need not resize."""
    preprocess = bundle.manifest.preprocess
    height, width = preprocess.size
    if preprocess.resize == "shorter" and preprocess.shorter_side is not None:
        height = width = preprocess.shorter_side
    return jpeg(synthetic(height, width))


def measure_rounds(
    bare: BareSession,
    service: Service,
    levels: Sequence[str],
    image: bytes,
    schedule: Schedule,
    *,
    path: str,
    model: str,
) -> dict[str, list[Round]]:
    """Measure every level in each round; the order of the two sides alternates.

    Args:
        path: route that takes images alone.
    """
    seconds, warm_up = schedule.seconds, schedule.warm_up
    rounds_by_level: dict[str, list[Round]] = {level: [] for level in levels}
    console = Console(stderr=True)
    quiet = not console.is_terminal
    for round_index in track(range(schedule.rounds), "rounds", console=console, disable=quiet):
        for level in levels:

            def serve(level: str = level) -> Report:
                return load_requests(
                    service.address,
                    [post(service.address, path, image, {"model": model, "level": level})],
                    concurrency=schedule.concurrency,
                    seconds=seconds,
                    warm_up=warm_up,
                    service_cpu=service.cpu_seconds,
                )

            def run_bare(level: str = level) -> Report:
                return bare.load(level, seconds, warm_up)

            rounds_by_level[level].append(Round(*alternate(round_index, run_bare, serve)))
    return rounds_by_level


def table(comparisons: Sequence[LevelComparison]) -> Table:
    """Return the comparisons as a table."""
    result = Table(box=SIMPLE, pad_edge=False)
    for title in (
        *("level", "bare\nimg/s", "served\nimg/s", "served\n/ bare"),
        *("bare\nCPU ms", "service\nCPU ms", "load\nCPU", "p50\nms", "p99\nms", "errors"),
    ):
        result.add_column(title, justify="left" if title == "level" else "right", no_wrap=True)
    for row in comparisons:
        result.add_row(
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
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if every level reached the goal, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.served_vs_bare",
        description="Compare the service's throughput with the bare session's, level by level.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--levels", nargs="+", metavar="LEVEL", help="default: all levels of the bundle"
    )
    parser.add_argument(
        "--rounds", type=between(int, 1, MAX_ROUNDS), default=5, help="default: %(default)s"
    )
    add_bounds(parser, concurrency=4 * cores(), seconds=4.0)
    parser.add_argument("--photo", type=Path, help="send this file, which the service must resize")
    parser.add_argument(
        "--goal",
        type=between(float, 0.0, 1.0),
        default=GOAL,
        help="minimum ratio; default: %(default)s",
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
        parser.error(
            f"{options.bundle} takes images with texts; only bundles for images can be compared"
        )
    levels = options.levels or list(bundle.manifest.levels)
    if unknown := [level for level in levels if level not in bundle.manifest.levels]:
        parser.error(f"unknown levels {unknown}; the bundle has {list(bundle.manifest.levels)}")
    with (
        bare_session(options.bundle, cores()) as bare,
        serving(["--bundles", str(options.bundle.resolve())]) as service,
    ):
        rounds_by_level = measure_rounds(
            bare,
            service,
            levels,
            image,
            Schedule(options.rounds, options.seconds, options.warm_up, options.concurrency),
            path="/v1/embed" if kind == "dual" else "/v1/classify",
            model=bundle.manifest.name,
        )
    comparisons = [compare(level, rounds) for level, rounds in rounds_by_level.items()]
    if options.json:
        print(json.dumps({"levels": [row.as_json() for row in comparisons]}))
    else:
        # A file or pipe has no terminal width.
        Console(width=None if sys.stdout.isatty() else 120).print(table(comparisons))
    return 0 if all(row.ratio >= options.goal for row in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
