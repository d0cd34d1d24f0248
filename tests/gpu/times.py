"""Times of the CUDA kernels against what their bytes cost: `python -m tests.gpu.times`.

The bound of a kernel is its bytes, read once and written once, over the bandwidth that a copy on
the same GPU reaches. What fits its caches can beat it, and no kernel can be seen to take less than
its launch from Python. It prints a table for docs/gpu.md.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.reduction import slots as slotting
from models.reduction.matcher import Matcher
from models.reduction.pitome import PiToMe
from models.reduction.tome import ToMe
from tests.gpu import device_ops, driver

# ViT-B/16 at 224: a layer's tokens, heads, width, and a plan.
TOKENS, HEADS, DIM, R = 197, 12, 768, 16
MARGIN = 0.45
_COPIED = 2**28


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


def bandwidth() -> float:
    """Bytes per second that a copy reads and writes on the device."""
    device = driver.device()
    to, source = device.allocate(_COPIED), device.allocate(_COPIED)
    seconds = device.seconds(lambda: device.copy(to, source, _COPIED), repeats=20)
    for address in (to, source):
        device.free(address)
    return 2 * _COPIED / seconds


def _of_torch(work: Callable[..., object], *tensors: Tensor) -> float | None:
    if not torch.cuda.is_available():
        return None
    moved = [tensor.cuda() for tensor in tensors]
    seconds = driver.device().seconds(lambda: work(*moved), repeats=20)
    torch.cuda.synchronize()
    return seconds


def measure(batches: Sequence[int] = (1, 32, 128)) -> Iterator[Row]:
    """Every op in float16, at each batch size."""
    device = driver.device()
    speed = bandwidth()
    draw = torch.Generator().manual_seed(0)
    for batch in batches:
        keys = torch.randn(batch, TOKENS, DIM, generator=draw).half()
        size = torch.ones(batch, TOKENS)
        matchers: dict[str, Matcher] = {"match_tome": ToMe(), "match_pitome": PiToMe(MARGIN)}
        for op, own in matchers.items():
            call = device_ops.match_call(op, keys, size, R, heads=HEADS, protected=1, margin=MARGIN)
            seconds = device.seconds(call)
            call.free()

            def by_torch(k: Tensor, s: Tensor, own: Matcher = own) -> Tensor:
                return own(k.unflatten(2, (HEADS, -1)).float().mean(2), s, R)

            read = keys.numel() * 2 + size.numel() * 4
            bound = (read + size.numel() * 8) / speed
            yield Row(op, batch, seconds, bound, _of_torch(by_torch, keys, size))

        metric = keys.float().unflatten(2, (HEADS, -1)).mean(2)
        slots, width = ToMe()(metric, size, R), TOKENS - R
        trace = slotting.identity(batch, TOKENS).contiguous()
        call = device_ops.reduce_call(keys, size, slots, width, trace)
        seconds = device.seconds(call)
        call.free()

        def moved(x: Tensor, s: Tensor, to: Tensor, t: Tensor, width: int = width) -> object:
            return slotting.reduce(x, s, to, width), slotting.compose(t, to)

        tokens = keys.numel() * 2 + batch * width * DIM * 2
        bound = (tokens + batch * (TOKENS * (4 + 8 + 16) + width * 4)) / speed
        yield Row("reduce", batch, seconds, bound, _of_torch(moved, keys, size, slots, trace))


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
    for row in measure():
        of_torch = "-" if row.torch is None else f"{row.torch * 1e6:.1f}"
        times = f"{row.seconds * 1e6:.1f} | {row.bound * 1e6:.1f} | {of_torch}"
        print(f"| {row.op} | {row.batch} | {times} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
