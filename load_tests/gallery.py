"""Measure galleries: the duration of searches, and the rate of adding images.

python -m load_tests.gallery search --sizes 1000 100000 1000000 --width 512
python -m load_tests.gallery ingest BUNDLE

`search` measures the store alone, on synthetic vectors; `ingest` measures a running service.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from load_tests import gallery_ingest, gallery_search
from load_tests.arguments import add_bounds, between
from load_tests.load import Schedule
from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.runtime.machine import cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if every goal was reached, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.gallery", description="Measure searches and added images."
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    commands = parser.add_subparsers(dest="command", required=True)

    search = commands.add_parser("search", help="measure the duration of a search by gallery size")
    default = "default: %(default)s"
    search.add_argument("--sizes", nargs="+", type=between(int, 10, 10**8), default=[1000, 100_000])
    search.add_argument("--width", type=between(int, 1, 8192), default=512, help=default)
    search.add_argument("--queries", type=between(int, 1, 10_000), default=200, help=default)
    search.add_argument(
        "--seconds",
        type=between(float, 0.1, 3600.0),
        default=60.0,
        help=f"maximum for each kind of search; {default}",
    )
    search.add_argument(
        "--folder", type=Path, help="folder of the galleries; default: a temporary folder"
    )

    ingest = commands.add_parser("ingest", help="compare images per second with the bare encoder")
    ingest.add_argument("bundle", type=Path, help="folder of a dual encoder's bundle")
    ingest.add_argument("--level", help="level of the gallery; default: the bundle's")
    ingest.add_argument("--rounds", type=between(int, 1, 100), default=5, help=default)
    ingest.add_argument(
        "--batch", type=between(int, 1, 32), default=16, help=f"images per request; {default}"
    )
    ingest.add_argument(
        "--goal", type=between(float, 0.0, 1.0), default=0.9, help=f"minimum ratio; {default}"
    )
    ingest.add_argument("--photo", type=Path, help="send this file, which the service must resize")
    add_bounds(ingest, concurrency=4, seconds=8.0)
    options = parser.parse_args(arguments)

    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.command == "search":
        rows = gallery_search.measure_each(
            options.sizes,
            gallery_search.SearchPlan(options.width, options.queries, options.seconds),
            options.folder,
        )
        if options.json:
            print(json.dumps({"sizes": [row.as_json() for row in rows]}))
        else:
            console.print(gallery_search.table(rows))
        return 0 if all(row.recall >= gallery_search.GOAL for row in rows) else 1
    try:
        bundle = Bundle.open(options.bundle)
    except BundleError as error:
        parser.error(str(error))
    if bundle.manifest.kind != "dual":
        parser.error(f"{options.bundle} is not the bundle of a dual encoder")
    level = options.level or bundle.manifest.default_level
    if level not in bundle.manifest.levels:
        parser.error(f"unknown level '{level}'; the bundle has {list(bundle.manifest.levels)}")
    comparison = gallery_ingest.compare(
        bundle,
        level,
        Schedule(options.rounds, options.seconds, options.warm_up, options.concurrency),
        batch=options.batch,
        photo=options.photo.read_bytes() if options.photo else None,
        callers=cores(),
    )
    if options.json:
        print(json.dumps(comparison.as_json()))
    else:
        console.print(gallery_ingest.table(comparison))
    return 0 if comparison.ratio >= options.goal else 1


if __name__ == "__main__":
    sys.exit(main())
