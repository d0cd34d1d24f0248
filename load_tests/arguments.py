"""Command-line arguments that the load generators share, and their limits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from load_tests.load import MAX_SECONDS

MAX_CALLERS = 256

N = TypeVar("N", int, float)


def between(convert: Callable[[str], N], low: N, high: N) -> Callable[[str], N]:
    """Return a converter for argparse's `type` that accepts numbers from `low` to `high`."""

    def read(text: str) -> N:
        try:
            number = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        # Written so that NaN is rejected.
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return number

    return read


def add_bounds(parser: argparse.ArgumentParser, *, concurrency: int, seconds: float) -> None:
    """Add options for the number of callers and the duration, with the given defaults."""
    default = "default: %(default)s"
    parser.add_argument(
        "--concurrency",
        type=between(int, 1, MAX_CALLERS),
        default=concurrency,
        help=f"concurrent callers; {default}",
    )
    parser.add_argument(
        "--seconds",
        type=between(float, 0.01, MAX_SECONDS),
        default=seconds,
        help=f"duration of the measurement in seconds; {default}",
    )
    parser.add_argument(
        "--warm-up",
        type=between(float, 0.0, MAX_SECONDS),
        default=1.0,
        help=f"duration of the warm-up in seconds; {default}",
    )
