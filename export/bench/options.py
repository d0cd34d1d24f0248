"""The command line of `tokenfold bench`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from export.machine import cores

DESCRIPTION = """\
Measure every level of a bundle: images per second, speedup over the unreduced network, efficiency
(speedup over what the FLOPs alone promise), time of one run, and peak memory."""

METHOD = """\
Work runs as in the service: one session with one thread inside a run, run from as many threads as
there are cores, one image a run. Every round gives each level a short slice of time; reported are
medians over the rounds, for speedups of the ratios within a round, with their quartiles: other work
on the machine shows there. p50 and p99 are times of single runs, beside those of the other threads.
A network with texts is asked a text of the most tokens it takes about each image, which is embedded
anew. A dual encoder embeds images; its texts, which nothing reduces, are measured beside them, each
of the most tokens. Peak memory is the largest resident set, while it runs, of a process that runs
this level only, and working memory what of it came on top of what was resident right after loading;
MB are 10^6 bytes."""


class Options(NamedTuple):
    """The command line; its help says what each means."""

    bundle: Path
    r: list[int]
    rates: list[list[float]]
    levels: list[str] | None
    compare: Path | None
    torch: bool
    save: bool
    json: bool
    threads: int
    batch: int
    rounds: int
    seconds: float


def parse(argv: Sequence[str] | None) -> Options:
    """Read the command line; exits with 2 and a message where it is wrong."""
    return Options(**vars(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tokenfold bench", description=DESCRIPTION, epilog=METHOD)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument(
        "--r",
        type=_at_least(0),
        nargs="+",
        default=[],
        metavar="R",
        help="also measure plans that remove R tokens in every layer, as ToMe's paper counts",
    )
    parser.add_argument(
        "--rates",
        type=_share,
        nargs=3,
        action="append",
        default=[],
        metavar=("PRUNE", "MERGE", "TEXT"),
        help="also measure PuMer at these shares of a layer's tokens, as its paper has them: image "
        "tokens pruned, image tokens merged, text tokens merged; may stand more than once",
    )
    parser.add_argument(
        "--levels",
        nargs="*",
        metavar="LEVEL",
        help="measure these levels only, or with no name none of them; the unreduced plan always",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="BUNDLE",
        help="run the same plans on this bundle too, in the same rounds, and show how many times "
        "faster the first one is",
    )
    parser.add_argument(
        "--torch",
        action="store_true",
        help="also run the checkpoint in eager PyTorch, fp32; of one run on all cores and one on "
        "each, the faster is shown",
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="write the figures, and latencies of larger batches, into the bundle's profile.json; "
        "the quality in it stays",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument(
        "--threads",
        type=_at_least(1),
        default=cores(),
        help="runs at once (default: one per core, %(default)s)",
    )
    parser.add_argument(
        "--batch", type=_at_least(1), default=1, help="images of one run (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds",
        type=_at_least(1),
        default=15,
        help="slices of each level (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=0.5,
        help="length of a slice; a run that has begun is finished (default: %(default)s)",
    )
    return parser


def _at_least(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < low:
            raise argparse.ArgumentTypeError(f"{number} is less than {low}")
        return number

    return read


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not 0 to 1")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    # Written so that NaN is refused.
    if not 0 < number <= 600:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 600")
    return number
