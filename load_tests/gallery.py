"""What galleries cost: to search them, and to fill them.

python -m load_tests.gallery search --sizes 1000 100000 1000000 --width 512
python -m load_tests.gallery ingest BUNDLE

The first measures the store alone, on synthetic vectors; the second a running service.
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
from tokenfold.bundle.bundle import Bundle, BundleError
from tokenfold.runtime.machine import cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 0 when every goal was reached, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.gallery", description="What galleries cost."
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    commands = parser.add_subparsers(dest="command", required=True)

    search = commands.add_parser("search", help="how long a search takes, by size")
    shown = "default: %(default)s"
    search.add_argument("--sizes", nargs="+", type=between(int, 10, 10**8), default=[1000, 100_000])
    search.add_argument("--width", type=between(int, 1, 8192), default=512, help=shown)
    search.add_argument("--queries", type=between(int, 1, 10_000), default=200, help=shown)
    search.add_argument(
        "--seconds",
        type=between(float, 0.1, 3600.0),
        default=60.0,
        help=f"for each kind of search at most; {shown}",
    )
    search.add_argument(
        "--folder", type=Path, help="where to put the galleries; default: temporary"
    )

    ingest = commands.add_parser("ingest", help="images per second, beside the bare encoder's")
    ingest.add_argument("bundle", type=Path, help="folder of a dual encoder's bundle")
    ingest.add_argument("--level", help="of the gallery; default: the bundle's")
    ingest.add_argument("--rounds", type=between(int, 1, 100), default=5, help=shown)
    ingest.add_argument(
        "--batch", type=between(int, 1, 32), default=16, help=f"images of a request; {shown}"
    )
    ingest.add_argument(
        "--goal", type=between(float, 0.0, 1.0), default=0.9, help=f"ratio; {shown}"
    )
    ingest.add_argument("--photo", type=Path, help="send this file, which is to be resized")
    add_bounds(ingest, concurrency=4, seconds=8.0)
    options = parser.parse_args(arguments)

    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.command == "search":
        rows = gallery_search.measure_each(
            options.sizes,
            gallery_search.Plan(options.width, options.queries, options.seconds),
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
        parser.error(f"{options.bundle} is no dual encoder's bundle")
    level = options.level or bundle.manifest.default_level
    if level not in bundle.manifest.levels:
        parser.error(f"unknown level '{level}'; the bundle has {list(bundle.manifest.levels)}")
    comparison = gallery_ingest.compare(
        bundle,
        level,
        rounds=options.rounds,
        batch=options.batch,
        seconds=options.seconds,
        warm_up=options.warm_up,
        concurrency=options.concurrency,
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
