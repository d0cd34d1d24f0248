"""How many photos a second the service's decoding makes of files, by threads and by processes.

python -m load_tests.decoding photo.jpg --callers 1 2 4 8 16

Threads share Python's lock, which the decoder gives up while it decodes and scales. Where they fall
behind as many processes, the lock is the limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

from load_tests.arguments import MOST_CALLERS, between
from load_tests.images import jpeg, synthetic
from load_tests.load import LONGEST_SECONDS, closed_loop
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.inference import images
from tokenfold.runtime.machine import cores
from tokenfold.service.settings import Settings

# Heights and widths of what is decoded where no photo is named: a web page's, and a camera's.
SYNTHETIC = ((375, 500), (3000, 4000))
# Callers pass through before they are measured.
_WARM_UP = 0.3
_MEETING = 60.0


class Rate(NamedTuple):
    """What some callers made.

    Attributes:
        per_second: photos.
        busy: processor cores that they kept busy.
    """

    per_second: float
    busy: float


class Row(NamedTuple):
    """Medians of a photo by so many threads, and by as many processes."""

    photo: str
    callers: int
    threads: Rate
    processes: Rate


def by_threads(photo: bytes, preprocess: Preprocess, callers: int, seconds: float) -> Rate:
    """Decode again and again in threads of this process."""
    most = int(Settings.model_fields["max_pixels"].default)

    def call() -> None:
        images.decode(photo, preprocess, max_pixels=most)

    report = closed_loop([call] * callers, seconds=seconds, warm_up=_WARM_UP)
    return Rate(report.images_per_second, report.generator_cpu)


_start: Barrier | None = None


def _meet(start: Barrier) -> None:
    global _start
    _start = start


def _alone(photo: bytes, preprocess: Preprocess, seconds: float) -> Rate:
    assert _start is not None  # the pool's initializer set it
    _start.wait(_MEETING)
    return by_threads(photo, preprocess, 1, seconds)


class Processes:
    """As many processes as callers, of a thread each, which begin together."""

    def __init__(self, pool: ProcessPoolExecutor, callers: int) -> None:
        self._pool = pool
        self._callers = callers

    def run(self, photo: bytes, preprocess: Preprocess, seconds: float) -> Rate:
        """Decode again and again in all of them."""
        asked = [
            self._pool.submit(_alone, photo, preprocess, seconds) for _ in range(self._callers)
        ]
        found = [one.result() for one in asked]
        return Rate(sum(one.per_second for one in found), sum(one.busy for one in found))


@contextmanager
def processes(callers: int) -> Iterator[Processes]:
    """Start them; they end with the block."""
    # Not forked: this process has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        callers, mp_context=context, initializer=_meet, initargs=(context.Barrier(callers),)
    ) as pool:
        yield Processes(pool, callers)


def measure(
    photos: Mapping[str, bytes],
    preprocess: Preprocess,
    *,
    callers: Sequence[int],
    rounds: int,
    seconds: float,
) -> Iterator[Row]:
    """Rows as they are measured; threads and processes take turns."""
    for count in callers:
        with processes(count) as pool:
            for name, photo in photos.items():
                found = [
                    (
                        by_threads(photo, preprocess, count, seconds),
                        pool.run(photo, preprocess, seconds),
                    )
                    for _ in range(rounds)
                ]
                threads, others = ([pair[at] for pair in found] for at in range(2))
                yield Row(name, count, _median(threads), _median(others))


def _median(rates: Sequence[Rate]) -> Rate:
    return Rate(*(statistics.median(column) for column in zip(*rates, strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, or JSON."""
    options = _options(arguments)
    if options.photos:
        photos = {path.name: path.read_bytes() for path in options.photos}
    else:
        photos = {f"{w} x {h}": jpeg(synthetic(h, w)) for h, w in SYNTHETIC}
    side = options.size
    preprocess = Preprocess(size=(side, side), resize="shorter", shorter_side=side * 8 // 7)
    rows = measure(
        photos,
        preprocess,
        callers=options.callers,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    if options.json:
        print(json.dumps({"cores": cores(), "rows": [_as_json(row) for row in rows]}))
        return 0
    print(f"photos/s on {cores()} cores, to {side} x {side}\n")
    print("| photo | callers | threads | cores busy | processes | cores busy | threads of it |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        threads, others = row.threads, row.processes
        share = threads.per_second / others.per_second if others.per_second else 0.0
        print(
            f"| {row.photo} | {row.callers} | {threads.per_second:.0f} | {threads.busy:.1f} | "
            f"{others.per_second:.0f} | {others.busy:.1f} | {share:.2f} |",
            flush=True,
        )
    return 0


def _as_json(row: Row) -> dict[str, Any]:
    return row._asdict() | {
        "threads": row.threads._asdict(),
        "processes": row.processes._asdict(),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    shown = "default: %(default)s"
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.decoding",
        description="Decode and scale photos as the service does, by threads and by processes.",
    )
    parser.add_argument(
        "photos", nargs="*", type=Path, metavar="PHOTO", help="files; by default two drawn ones"
    )
    parser.add_argument(
        "--callers",
        nargs="+",
        type=between(int, 1, MOST_CALLERS),
        default=[1, 2, 4, 8, 16],
        help="threads, and processes; default: 1 2 4 8 16",
    )
    parser.add_argument(
        "--size",
        type=between(int, 8, 4096),
        default=224,
        help=f"side of the network's input in pixels; {shown}",
    )
    parser.add_argument("--rounds", type=between(int, 1, 100), default=3, help=shown)
    parser.add_argument(
        "--seconds",
        type=between(float, 0.01, LONGEST_SECONDS),
        default=2.0,
        help=f"of each round; {shown}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    for path in options.photos:
        if not path.is_file():
            parser.error(f"{path} is no file")
    return options


if __name__ == "__main__":
    sys.exit(main())
