"""Command-line arguments that the load generators share, and their bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from load_tests.load import LONGEST_SECONDS

MOST_CALLERS = 256

N = TypeVar("N", int, float)


def between(kind: Callable[[str], N], low: N, high: N) -> Callable[[str], N]:
    """For argparse's `type`: a number from `low` to `high`."""

    def read(text: str) -> N:
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        # Written so that NaN is refused.
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return number

    return read


def add_bounds(parser: argparse.ArgumentParser, *, concurrency: int, seconds: float) -> None:
    """Add how many callers there are and how long they call, with these defaults."""
    shown = "default: %(default)s"
    parser.add_argument(
        "--concurrency",
        type=between(int, 1, MOST_CALLERS),
        default=concurrency,
        help=f"callers; {shown}",
    )
    parser.add_argument(
        "--seconds",
        type=between(float, 0.01, LONGEST_SECONDS),
        default=seconds,
        help=f"to measure; {shown}",
    )
    parser.add_argument(
        "--warm-up",
        type=between(float, 0.0, LONGEST_SECONDS),
        default=1.0,
        help=f"seconds before; {shown}",
    )
