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
"""Ways to run PyTorch: eager; `blocks`, each block compiled once for all shapes; `compiled`, the
whole network for each plan and batch size; `autotuned`, as `compiled` with tuned matrix products.
"""

CPU_BATCHES = (1,)
GPU_BATCHES = (1, 32, 128)
"""Default batch sizes on the CPU and on a GPU."""

DESCRIPTION = """\
Measure every level of a bundle: images per second, speedup over the unreduced network, efficiency
(speedup divided by the speedup that FLOPs promise), duration of one run, and peak memory."""

METHOD = """\
On the CPU, work runs as in the service: one session with one thread inside a run, called from as
many threads as there are cores, one image per run. Every round gives each level a short slice of
time. The results are medians over the rounds. Speedups are medians of the ratios within a round,
with their quartiles, which widen when other work disturbs the machine. p50 and p99 are times of
single runs while the other threads run too. For a network with texts, each run embeds a new image
and answers one question of the maximum number of tokens. For a dual encoder, each run embeds
images; its texts, which no level reduces, are measured separately at their maximum length. Peak
memory is the largest resident set of a process that runs this level only. Working memory is the
increase of the peak over the resident set right after loading. MB are 10^6 bytes.

On a GPU, three figures are measured: images/s of sequential runs on images that are already on the
GPU; images/s of runs from host memory by two callers, as in the service; and the duration of one
run from host memory on an otherwise idle GPU. PyTorch runs the same plans and matchers in the
bundle's precision, on normalised images that are already on the GPU, either directly or as a CUDA
graph, whichever is faster. Memory is the device memory of a process that runs this level only, at
the largest batch size.

With TensorRT, the engine that accepts any plan is measured; missing engines are built first. On
request, engines for a single plan, and ONNX Runtime on the same GPU, run in the same rounds. Their
ratio is the speed of the engine for all plans divided by theirs."""


class Options(NamedTuple):
    """The parsed command line; the option's help describes each field."""

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
        """Images per run, for a command line with a single batch size."""
        (batch,) = self.batch
        return batch


def parse(argv: Sequence[str] | None) -> Options:
    """Parse the command line; exit with code 2 and a message if it is invalid."""
    parser = _parser()
    options = parser.parse_args(argv)
    on_gpu = options.backend != "cpu"
    if options.torch == []:
        options.torch = ["eager", "blocks"] if on_gpu else ["eager"]
    options.torch = options.torch or []
    options.batch = options.batch or list(GPU_BATCHES if on_gpu else CPU_BATCHES)
    options.rounds = options.rounds or (5 if on_gpu else 15)
    options.seconds = options.seconds or (0.15 if on_gpu else 0.5)
    options.rates = [tuple(shares) for shares in options.rates]
    if on_gpu and options.save:
        parser.error("--save is for --backend cpu, because a profile describes the CPU")
    if not on_gpu:
        if len(options.batch) > 1:
            parser.error("--batch takes several sizes with --backend cuda or tensorrt only")
        if options.torch not in ([], ["eager"]):
            parser.error(f"--torch {options.torch[-1]} is for --backend cuda or tensorrt")
        if options.out is not None or options.torch_levels is not None or not options.memory:
            parser.error("--out, --torch-levels and --no-memory are for --backend cuda or tensorrt")
    if options.backend != "tensorrt" and (
        options.engines or options.beside or options.static_levels
    ):
        parser.error("--engines, --beside and --static-levels are for --backend tensorrt")
    return Options(**vars(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tokenfold bench", description=DESCRIPTION, epilog=METHOD)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument(
        "--r",
        type=_at_least(0),
        nargs="+",
        default=[],
        metavar="R",
        help="also measure plans that remove R tokens in every layer, as in the ToMe paper",
    )
    parser.add_argument(
        "--rates",
        type=_fraction,
        nargs=3,
        action="append",
        default=[],
        metavar=("PRUNE", "MERGE", "TEXT"),
        help="also measure PuMer with these fractions of a layer's tokens, as in its paper: image "
        "tokens pruned, image tokens merged, text tokens merged; may be given more than once",
    )
    parser.add_argument(
        "--levels",
        nargs="*",
        metavar="LEVEL",
        help="measure only these levels, or no level if no name is given; the unreduced plan is "
        "always measured",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="BUNDLE",
        help="also run the same plans on this bundle, in the same rounds, and show the ratio of "
        "BUNDLE's speed to its speed",
    )
    parser.add_argument(
        "--backend",
        choices=get_args(BenchBackend),
        default="cpu",
        help="run on the CPU, on a GPU in ONNX Runtime, or on a GPU as TensorRT engines "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--beside",
        choices=["cuda"],
        help="with TensorRT: also run the same plans in ONNX Runtime on the same GPU, in the same "
        "rounds, and show the ratio of the engine's speed to its speed",
    )
    parser.add_argument(
        "--static-levels",
        action="store_true",
        help="with TensorRT: also run levels on engines for their plan alone, as built by "
        "`tokenfold build --static-levels`, and show the GPU memory of both sets of engines",
    )
    parser.add_argument(
        "--engines",
        type=_path,
        metavar="DIR",
        help="with TensorRT: folder of the engines of all bundles, as for `tokenfold build` "
        "(default: a folder in the user's cache)",
    )
    parser.add_argument(
        "--torch",
        nargs="*",
        choices=get_args(TorchWay),
        metavar="WAY",
        help="also run the checkpoint in PyTorch. On the CPU: eager, fp32, as one run on all cores "
        "or one run per core, whichever is faster. On a GPU (default: eager blocks): eager; "
        "blocks, torch.compile of each block, once for all shapes; compiled, torch.compile of the "
        "network for each plan and batch size, a minute each; autotuned, as compiled with mode "
        "max-autotune",
    )
    parser.add_argument(
        "--torch-levels",
        nargs="+",
        metavar="LEVEL",
        help="compile whole networks only at these levels, named as in the table, such as r=16",
    )
    parser.add_argument(
        "--torch-wait",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="time limit for PyTorch to compile; runs that are not ready by then are left out "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="write the figures, and latencies of larger batches, to the bundle's profile.json; "
        "the quality figures in it are kept",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="on a GPU: also write the JSON to this file, after each part of the measurement",
    )
    parser.add_argument(
        "--threads",
        type=_at_least(1),
        default=cores(),
        help="concurrent runs (default: one per core, %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=_at_least(1),
        nargs="+",
        metavar="IMAGES",
        help="images per run; several sizes on a GPU (default: 1, and on a GPU 1 32 128)",
    )
    parser.add_argument(
        "--no-memory",
        dest="memory",
        action="store_false",
        help="on a GPU: do not measure memory",
    )
    parser.add_argument(
        "--rounds",
        type=_at_least(1),
        help="slices per level (default: 15, on a GPU 5)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        help="duration of a slice; a started run is finished (default: 0.5, on a GPU 0.15)",
    )
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _at_least(low: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if number < low:
            raise argparse.ArgumentTypeError(f"{number} is less than the minimum, {low}")
        return number

    return read


def _fraction(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    # Written so that NaN is rejected.
    if not 0 < number <= 600:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 600")
    return number
