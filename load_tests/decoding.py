"""Photos per second that the service's decoder processes, in threads and in processes.

python -m load_tests.decoding photo.jpg --callers 1 2 4 8 16

Threads share Python's lock, which the decoder releases while it decodes and scales. If threads are
slower than the same number of processes, the lock is the limit.
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

from load_tests.arguments import MAX_CALLERS, between
from load_tests.images import jpeg, synthetic
from load_tests.load import MAX_SECONDS, closed_loop
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.inference import images
from tokenfold.runtime.machine import cores
from tokenfold.service.settings import Settings

# Heights and widths of the synthetic photos: typical of a web page, and of a camera.
SYNTHETIC = ((375, 500), (3000, 4000))
# Seconds of warm-up before callers are measured.
_WARM_UP = 0.3
_START_TIMEOUT = 60.0


class Rate(NamedTuple):
    """Throughput of some callers.

    Attributes:
        per_second: photos per second.
        busy: number of processor cores kept busy.
    """

    per_second: float
    busy: float


class Row(NamedTuple):
    """Medians of one photo, in threads and in the same number of processes."""

    photo: str
    callers: int
    threads: Rate
    processes: Rate


def by_threads(photo: bytes, preprocess: Preprocess, callers: int, seconds: float) -> Rate:
    """Decode a photo repeatedly in threads of this process."""
    max_pixels = int(Settings.model_fields["max_pixels"].default)

    def call() -> None:
        images.decode(photo, preprocess, max_pixels=max_pixels)

    report = closed_loop([call] * callers, seconds=seconds, warm_up=_WARM_UP)
    return Rate(report.images_per_second, report.generator_cpu)


_start: Barrier | None = None


def _set_barrier(start: Barrier) -> None:
    global _start
    _start = start


def _decode_in_process(photo: bytes, preprocess: Preprocess, seconds: float) -> Rate:
    assert _start is not None  # set by the pool's initializer
    _start.wait(_START_TIMEOUT)
    return by_threads(photo, preprocess, 1, seconds)


class Processes:
    """A number of processes, each with one thread, that start decoding together."""

    def __init__(self, pool: ProcessPoolExecutor, callers: int) -> None:
        self._pool = pool
        self._callers = callers

    def run(self, photo: bytes, preprocess: Preprocess, seconds: float) -> Rate:
        """Decode a photo repeatedly in all processes."""
        futures = [
            self._pool.submit(_decode_in_process, photo, preprocess, seconds)
            for _ in range(self._callers)
        ]
        rates = [future.result() for future in futures]
        return Rate(sum(rate.per_second for rate in rates), sum(rate.busy for rate in rates))


@contextmanager
def processes(callers: int) -> Iterator[Processes]:
    """Start the processes; leaving the context ends them."""
    # Not forked, because this process has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        callers, mp_context=context, initializer=_set_barrier, initargs=(context.Barrier(callers),)
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
    """Yield rows as they are measured; threads and processes alternate."""
    for count in callers:
        with processes(count) as pool:
            for name, photo in photos.items():
                pairs = [
                    (
                        by_threads(photo, preprocess, count, seconds),
                        pool.run(photo, preprocess, seconds),
                    )
                    for _ in range(rounds)
                ]
                thread_rates, process_rates = ([pair[side] for pair in pairs] for side in range(2))
                yield Row(name, count, _median(thread_rates), _median(process_rates))


def _median(rates: Sequence[Rate]) -> Rate:
    return Rate(*(statistics.median(column) for column in zip(*rates, strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: print a table or JSON."""
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
    print("| photo | callers | threads | cores busy | processes | cores busy | threads/processes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        threads, processes = row.threads, row.processes
        share = threads.per_second / processes.per_second if processes.per_second else 0.0
        print(
            f"| {row.photo} | {row.callers} | {threads.per_second:.0f} | {threads.busy:.1f} | "
            f"{processes.per_second:.0f} | {processes.busy:.1f} | {share:.2f} |",
            flush=True,
        )
    return 0


def _as_json(row: Row) -> dict[str, Any]:
    return row._asdict() | {
        "threads": row.threads._asdict(),
        "processes": row.processes._asdict(),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = "default: %(default)s"
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.decoding",
        description="Decode and scale photos as the service does, by threads and by processes.",
    )
    parser.add_argument(
        "photos", nargs="*", type=Path, metavar="PHOTO", help="files; default: two synthetic photos"
    )
    parser.add_argument(
        "--callers",
        nargs="+",
        type=between(int, 1, MAX_CALLERS),
        default=[1, 2, 4, 8, 16],
        help="numbers of threads and of processes; default: 1 2 4 8 16",
    )
    parser.add_argument(
        "--size",
        type=between(int, 8, 4096),
        default=224,
        help=f"side of the network's input, pixels; {default}",
    )
    parser.add_argument("--rounds", type=between(int, 1, 100), default=3, help=default)
    parser.add_argument(
        "--seconds",
        type=between(float, 0.01, MAX_SECONDS),
        default=2.0,
        help=f"duration of each round; {default}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    for path in options.photos:
        if not path.is_file():
            parser.error(f"{path} is not a file")
    return options


if __name__ == "__main__":
    sys.exit(main())
