"""Measure the CUDA kernels, and compare with the time to move their bytes.

`python -m tests.gpu.times` prints a table for docs/gpu.md.

A kernel's time is the time of a CUDA graph of many launches, divided by their number. It includes
the gap between two kernels, which has a row of its own, and excludes Python. Launches alternate
between several inputs: the inputs of batches of 32 or more come from memory, and those of one image
from the cache, as after another kernel. PyTorch's ops also run in a graph, with one input. The
bound of a kernel is its bytes, read once and written once, divided by the bandwidth of a copy on
the same GPU.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tests.gpu import device_ops, driver
from tokenfold.models.reduction import slots as slotting
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.tome import ToMe

# One layer of ViT-B/16 at 224 pixels: tokens, heads, width, and a count of tokens to merge.
TOKENS, HEADS, DIM, R = 197, 12, 768, 16
MARGIN = 0.45
_COPIED = 2**28
# Bytes that exceed every GPU's cache, and the maximum number of alternating inputs.
_OUT_OF_CACHE, _MAX_SETS = 2**28, 8
_LAUNCHES = 128


class Row(NamedTuple):
    """Times of one kernel at one batch size, in seconds.

    Attributes:
        bound: time to move the kernel's bytes at the bandwidth of a copy.
        torch: time of PyTorch's ops on the same GPU; None if PyTorch has no CUDA.
    """

    op: str
    batch: int
    seconds: float
    bound: float
    torch: float | None


class PreparedCall(Protocol):
    """An op with its inputs and outputs on the GPU."""

    def __call__(self) -> None:
        """Launch, without waiting."""

    def free(self) -> None:
        """Free its memory."""


def bandwidth() -> float:
    """Return the bandwidth of a copy on the device: bytes read plus bytes written per second."""
    device = driver.device()
    to, source = device.allocate(_COPIED), device.allocate(_COPIED)
    seconds = device.seconds(lambda: device.copy(to, source, _COPIED), repeats=20)
    for address in (to, source):
        device.free(address)
    return 2 * _COPIED / seconds


def graph_seconds(calls: Sequence[PreparedCall], launches: int = _LAUNCHES) -> float:
    """Return the time of one launch in a graph of many that alternate between calls.

    The calls are freed.
    """
    device = driver.device()
    rounds = -(-launches // len(calls))

    def launch_all() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    calls[0]()  # Load the kernel before capturing.
    graph = device.capture(launch_all)
    seconds = device.seconds(lambda: device.replay(graph), repeats=10, warmups=2)
    device.free_graph(graph)
    for call in calls:
        call.free()
    return seconds / (rounds * len(calls))


def launch_seconds() -> float:
    """Return the time of a kernel with almost no work: the gap between two kernels."""
    one = torch.zeros(1, 1, dtype=torch.int64)
    call = device_ops.reduce_call(torch.ones(1, 1, 8).half(), torch.ones(1, 1), one, 1, one)
    return graph_seconds([call])


def sets(read: int) -> int:
    """Return the number of alternating inputs of `read` bytes each."""
    return max(1, min(_MAX_SETS, -(-_OUT_OF_CACHE // read)))


def torch_seconds(work: Callable[..., object], *tensors: Tensor) -> float | None:
    if not torch.cuda.is_available():
        return None
    cuda_tensors = [tensor.cuda() for tensor in tensors]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work(*cuda_tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work(*cuda_tensors)
    seconds = driver.device().seconds(graph.replay, repeats=20)
    torch.cuda.synchronize()
    return seconds


def measure(batches: Sequence[int] = (1, 32, 128)) -> Iterator[Row]:
    """Measure every op in float16, at each batch size."""
    speed = bandwidth()
    draw = torch.Generator().manual_seed(0)
    for batch in batches:
        keys = torch.randn(batch, TOKENS, DIM, generator=draw).half()
        size = torch.ones(batch, TOKENS)
        # Not padded: the check for absent tokens cannot be captured in a graph.
        matchers: dict[str, Matcher] = {
            "match_tome": ToMe(padded=False),
            "match_pitome": PiToMe(MARGIN),
        }
        read = keys.numel() * 2 + size.numel() * 4
        for op, matcher in matchers.items():
            calls = [
                device_ops.match_call(op, keys, size, R, heads=HEADS, protected=1, margin=MARGIN)
                for _ in range(sets(read))
            ]
            seconds = graph_seconds(calls)

            def torch_match(k: Tensor, s: Tensor, matcher: Matcher = matcher) -> Tensor:
                return matcher(k.unflatten(2, (HEADS, -1)).float().mean(2), s, R)

            bound = (read + size.numel() * 8) / speed
            yield Row(op, batch, seconds, bound, torch_seconds(torch_match, keys, size))

        metric = keys.float().unflatten(2, (HEADS, -1)).mean(2)
        slots, width = ToMe()(metric, size, R), TOKENS - R
        trace = slotting.identity(batch, TOKENS).contiguous()
        calls = [device_ops.reduce_call(keys, size, slots, width, trace) for _ in range(sets(read))]
        seconds = graph_seconds(calls)

        def torch_reduce(x: Tensor, s: Tensor, to: Tensor, t: Tensor, width: int = width) -> object:
            return slotting.reduce(x, s, to, width), slotting.compose(t, to)

        tokens = keys.numel() * 2 + batch * width * DIM * 2
        bound = (tokens + batch * (TOKENS * (4 + 8 + 16) + width * 4)) / speed
        yield Row(
            "reduce", batch, seconds, bound, torch_seconds(torch_reduce, keys, size, slots, trace)
        )


def main() -> int:
    """Print the table; without a GPU, print the reason."""
    reason = driver.missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    device = driver.device()
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{device.name()}, driver of CUDA {device.version()}, {today}, torch {torch.__version__}")
    print(f"float16, {TOKENS} tokens of {HEADS} x {DIM // HEADS}, r = {R}; microseconds\n")
    print("| op | batch | kernel | bandwidth bound | PyTorch's ops |")
    print("|---|---|---|---|---|")
    print(f"| a launch | - | {launch_seconds() * 1e6:.1f} | - | - |")
    for row in measure():
        torch_time = "-" if row.torch is None else f"{row.torch * 1e6:.1f}"
        times = f"{row.seconds * 1e6:.1f} | {row.bound * 1e6:.1f} | {torch_time}"
        print(f"| {row.op} | {row.batch} | {times} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
