"""Times of the CUDA kernels against what their bytes cost: `python -m tests.gpu.times`.

A kernel's time is that of many launches in one CUDA graph, by their number: it holds what the GPU
needs from one kernel to the next, which a row of its own shows, and nothing of Python. Launches
take turns with several inputs: those of a batch of 32 or more come out of the memory, those of one
image out of the cache, as they do behind another kernel. PyTorch's ops are in a graph, too, with
one input. The bound of a kernel is its bytes, read once and written once, over the bandwidth that a
copy on the same GPU reaches. It prints a table for docs/gpu.md.
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

# ViT-B/16 at 224: a layer's tokens, heads, width, and a plan.
TOKENS, HEADS, DIM, R = 197, 12, 768, 16
MARGIN = 0.45
_COPIED = 2**28
# Bytes that no GPU's caches hold, and how many inputs these may take.
_OUT_OF_CACHE, _MOST_SETS = 2**28, 8
_LAUNCHES = 128


class Row(NamedTuple):
    """One kernel at one batch size.

    Attributes:
        bound: seconds that its bytes take at the bandwidth of a copy.
        torch: seconds that PyTorch's ops take on the same GPU; None where PyTorch has no CUDA.
    """

    op: str
    batch: int
    seconds: float
    bound: float
    torch: float | None


class Launched(Protocol):
    """An op with its memory on the GPU."""

    def __call__(self) -> None:
        """Launch, without waiting."""

    def free(self) -> None:
        """Free its memory."""


def bandwidth() -> float:
    """Bytes per second that a copy reads and writes on the device."""
    device = driver.device()
    to, source = device.allocate(_COPIED), device.allocate(_COPIED)
    seconds = device.seconds(lambda: device.copy(to, source, _COPIED), repeats=20)
    for address in (to, source):
        device.free(address)
    return 2 * _COPIED / seconds


def graph_seconds(calls: Sequence[Launched], launches: int = _LAUNCHES) -> float:
    """Of one launch of many in a graph, the calls by turns; frees them."""
    device = driver.device()
    rounds = -(-launches // len(calls))

    def all_of_them() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    calls[0]()  # what is done once, is done
    graph = device.captured(all_of_them)
    seconds = device.seconds(lambda: device.replay(graph), repeats=10, warmups=2)
    device.forget(graph)
    for call in calls:
        call.free()
    return seconds / (rounds * len(calls))


def launch_seconds() -> float:
    """Of a kernel that has hardly anything to do: what the GPU needs from one to the next."""
    one = torch.zeros(1, 1, dtype=torch.int64)
    call = device_ops.reduce_call(torch.ones(1, 1, 8).half(), torch.ones(1, 1), one, 1, one)
    return graph_seconds([call])


def sets(read: int) -> int:
    """How many inputs of so many bytes take turns."""
    return max(1, min(_MOST_SETS, -(-_OUT_OF_CACHE // read)))


def torch_seconds(work: Callable[..., object], *tensors: Tensor) -> float | None:
    if not torch.cuda.is_available():
        return None
    moved = [tensor.cuda() for tensor in tensors]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work(*moved)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work(*moved)
    seconds = driver.device().seconds(graph.replay, repeats=20)
    torch.cuda.synchronize()
    return seconds


def measure(batches: Sequence[int] = (1, 32, 128)) -> Iterator[Row]:
    """Every op in float16, at each batch size."""
    speed = bandwidth()
    draw = torch.Generator().manual_seed(0)
    for batch in batches:
        keys = torch.randn(batch, TOKENS, DIM, generator=draw).half()
        size = torch.ones(batch, TOKENS)
        # Without the question whether tokens are absent, which a graph cannot hold.
        matchers: dict[str, Matcher] = {
            "match_tome": ToMe(padded=False),
            "match_pitome": PiToMe(MARGIN),
        }
        read = keys.numel() * 2 + size.numel() * 4
        for op, own in matchers.items():
            calls = [
                device_ops.match_call(op, keys, size, R, heads=HEADS, protected=1, margin=MARGIN)
                for _ in range(sets(read))
            ]
            seconds = graph_seconds(calls)

            def by_torch(k: Tensor, s: Tensor, own: Matcher = own) -> Tensor:
                return own(k.unflatten(2, (HEADS, -1)).float().mean(2), s, R)

            bound = (read + size.numel() * 8) / speed
            yield Row(op, batch, seconds, bound, torch_seconds(by_torch, keys, size))

        metric = keys.float().unflatten(2, (HEADS, -1)).mean(2)
        slots, width = ToMe()(metric, size, R), TOKENS - R
        trace = slotting.identity(batch, TOKENS).contiguous()
        calls = [device_ops.reduce_call(keys, size, slots, width, trace) for _ in range(sets(read))]
        seconds = graph_seconds(calls)

        def moved(x: Tensor, s: Tensor, to: Tensor, t: Tensor, width: int = width) -> object:
            return slotting.reduce(x, s, to, width), slotting.compose(t, to)

        tokens = keys.numel() * 2 + batch * width * DIM * 2
        bound = (tokens + batch * (TOKENS * (4 + 8 + 16) + width * 4)) / speed
        yield Row("reduce", batch, seconds, bound, torch_seconds(moved, keys, size, slots, trace))


def main() -> int:
    """Print the table, or why there is none."""
    why = driver.missing()
    if why is not None:
        print(why, file=sys.stderr)
        return 1
    device = driver.device()
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{device.name()}, driver of CUDA {device.version()}, {today}, torch {torch.__version__}")
    print(f"float16, {TOKENS} tokens of {HEADS} x {DIM // HEADS}, r = {R}; microseconds\n")
    print("| op | batch | kernel | bandwidth bound | PyTorch's ops |")
    print("|---|---|---|---|---|")
    print(f"| a launch | - | {launch_seconds() * 1e6:.1f} | - | - |")
    for row in measure():
        of_torch = "-" if row.torch is None else f"{row.torch * 1e6:.1f}"
        times = f"{row.seconds * 1e6:.1f} | {row.bound * 1e6:.1f} | {of_torch}"
        print(f"| {row.op} | {row.batch} | {times} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
