"""The command line of `tokenfold bench`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from tokenfold.bundle.pair_workload import Rates
from tokenfold.runtime.machine import cores

GpuBackend = Literal["cuda", "tensorrt"]
BenchBackend = Literal["cpu", "cuda", "tensorrt"]

TorchWay = Literal["eager", "blocks", "compiled", "autotuned"]
"""How PyTorch runs: op by op, or compiled: each block once for all that it meets, or the whole
network for each plan and batch by itself, that also with its matrix products tuned."""

HOST = (1,)
DEVICE = (1, 32, 128)
"""Images of one run, where they are not said."""

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
MB are 10^6 bytes.

On a GPU: images/s of runs one after the other with images that are there already, of runs from host
memory by two callers as in the service, and the time of one run from host memory while nothing else
runs. PyTorch has the same plans and matchers, normalised images that are there already, and the
bundle's precision; of running it directly and as a CUDA graph the faster counts. Memory is what the
device gives out to a process that runs this level only, at the largest batch.

With TensorRT the engine that takes any plan is measured; engines that are missing are built first.
Engines of one plan, and ONNX Runtime on the same GPU, run in the same rounds where they are asked
for: a ratio is the speed of the engine of all plans over theirs."""


class Options(NamedTuple):
    """The command line; its help says what each means."""

    bundle: Path
    r: list[int]
    rates: list[Rates]
    levels: list[str] | None
    compare: Path | None
    torch: list[TorchWay]
    torch_levels: list[str] | None
    torch_wait: float
    save: bool
    json: bool
    out: Path | None
    backend: BenchBackend
    engines: Path | None
    beside: Literal["cuda"] | None
    static_levels: bool
    threads: int
    batch: list[int]
    memory: bool
    rounds: int
    seconds: float

    @property
    def images(self) -> int:
        """Of one run, where there is one size of batch only."""
        (batch,) = self.batch
        return batch


def parse(argv: Sequence[str] | None) -> Options:
    """Read the command line; exits with 2 and a message where it is wrong."""
    parser = _parser()
    given = parser.parse_args(argv)
    on_gpu = given.backend != "cpu"
    if given.torch == []:
        given.torch = ["eager", "blocks"] if on_gpu else ["eager"]
    given.torch = given.torch or []
    given.batch = given.batch or list(DEVICE if on_gpu else HOST)
    given.rounds = given.rounds or (5 if on_gpu else 15)
    given.seconds = given.seconds or (0.15 if on_gpu else 0.5)
    given.rates = [tuple(shares) for shares in given.rates]
    if on_gpu and given.save:
        parser.error("--save is for --backend cpu: a profile tells of the CPU")
    if not on_gpu:
        if len(given.batch) > 1:
            parser.error("--batch takes several sizes with --backend cuda or tensorrt only")
        if given.torch not in ([], ["eager"]):
            parser.error(f"--torch {given.torch[-1]} is for --backend cuda or tensorrt")
        if given.out is not None or given.torch_levels is not None or not given.memory:
            parser.error("--out, --torch-levels and --no-memory are for --backend cuda or tensorrt")
    if given.backend != "tensorrt" and (given.engines or given.beside or given.static_levels):
        parser.error("--engines, --beside and --static-levels are for --backend tensorrt")
    return Options(**vars(given))


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
        "--backend",
        choices=get_args(BenchBackend),
        default="cpu",
        help="where to run: on the CPU, or on a GPU in ONNX Runtime or as TensorRT's engines "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--beside",
        choices=["cuda"],
        help="with TensorRT: run the same plans in ONNX Runtime on the same GPU too, in the same "
        "rounds, and show how many times faster the engine is",
    )
    parser.add_argument(
        "--static-levels",
        action="store_true",
        help="with TensorRT: run levels also on engines of their plan alone, as `tokenfold build "
        "--static-levels` makes them, and show what both ways take of the GPU's memory",
    )
    parser.add_argument(
        "--engines",
        type=_path,
        metavar="DIR",
        help="with TensorRT: where the engines of all bundles are kept, as for `tokenfold build` "
        "(default: a folder in the user's cache)",
    )
    parser.add_argument(
        "--torch",
        nargs="*",
        choices=get_args(TorchWay),
        metavar="WAY",
        help="also run the checkpoint in PyTorch; on the CPU in fp32, eager: of one run on all "
        "cores and one on each, the faster is shown. On a GPU in these ways (default: eager "
        "blocks): eager; blocks, torch.compile of each block, once for all that it meets; "
        "compiled, torch.compile of the network for each plan and batch, a minute each; autotuned, "
        "that with mode max-autotune",
    )
    parser.add_argument(
        "--torch-levels",
        nargs="+",
        metavar="LEVEL",
        help="compile whole networks at these levels only, named as in the table, such as r=16",
    )
    parser.add_argument(
        "--torch-wait",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="for PyTorch to compile; what takes longer is left out (default: %(default)g)",
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="write the figures, and latencies of larger batches, into the bundle's profile.json; "
        "the quality in it stays",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="on a GPU: also write the JSON here, anew whenever there is more of it",
    )
    parser.add_argument(
        "--threads",
        type=_at_least(1),
        default=cores(),
        help="runs at once (default: one per core, %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=_at_least(1),
        nargs="+",
        metavar="IMAGES",
        help="images of one run; several on a GPU (default: 1, and on a GPU 1 32 128)",
    )
    parser.add_argument(
        "--no-memory",
        dest="memory",
        action="store_false",
        help="on a GPU: leave out the processes whose memory is watched",
    )
    parser.add_argument(
        "--rounds",
        type=_at_least(1),
        help="slices of each level (default: 15, on a GPU 5)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        help="length of a slice; a run that has begun is finished (default: 0.5, on a GPU 0.15)",
    )
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


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
