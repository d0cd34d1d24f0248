"""Times of Attend and Importance: `python -m tests.gpu.attend_times`.

Measured as in `tests.gpu.times`. PyTorch's are those of its ops, with
scaled_dot_product_attention for Attend: with log size as its mask, and without any. Its tensors lie
as ours do, head beside head.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gpu import attend_device, driver, times
from tokenfold.models.networks.operators import EagerOperators


class Shape(NamedTuple):
    """Attention of one layer.

    Attributes:
        name: the network.
    """

    name: str
    queries: int
    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype = torch.float16


SHAPES = (
    Shape("ViT-B/16", 197, 197, 12, 64),
    Shape("ViT-B/16, half the tokens", 99, 99, 12, 64),
    Shape("ViT-L/16", 197, 197, 16, 64),
    Shape("SigLIP-So/14", 729, 729, 16, 72),
    Shape("METER, text to image", 40, 577, 12, 64),
    Shape("ViT-B/16", 197, 197, 12, 64, torch.bfloat16),
    Shape("ViT-B/16", 197, 197, 12, 64, torch.float32),
)
# Queries that Importance asks, of ViLT.
_WORDS = 40
_MOST_LAUNCHES = 64
# Of a batch, for the inputs of larger ones take longer to make than all that is measured.
_MOST_TOKENS = 2**15


class Row(NamedTuple):
    """One op at one shape and batch size; seconds, or None where PyTorch has no CUDA.

    Attributes:
        bound: what its bytes take at the bandwidth of a copy.
        torch: of PyTorch with sizes.
        torch_plain: of PyTorch without.
    """

    op: str
    shape: Shape
    batch: int
    seconds: float
    bound: float
    torch: float | None
    torch_plain: float | None


def _biased(q: Tensor, k: Tensor, v: Tensor, size: Tensor, heads: int) -> Tensor:
    return EagerOperators().attend(q, k, v, size, heads)


def _plain(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)


def _attend(shape: Shape, batch: int, speed: float) -> Row:
    draw = torch.Generator().manual_seed(0)
    channels, heads = shape.heads * shape.head_dim, shape.heads
    q = torch.randn(batch, shape.queries, channels, generator=draw).to(shape.dtype)
    k = torch.randn(batch, shape.tokens, channels, generator=draw).to(shape.dtype)
    size = torch.randint(1, 4, (batch, shape.tokens), generator=draw).float()
    read = (q.numel() + 2 * k.numel()) * q.itemsize + size.numel() * 4
    calls = [attend_device.attend_call(q, k, k, size, heads=heads) for _ in range(times.sets(read))]
    seconds = times.graph_seconds(calls, _MOST_LAUNCHES)
    bound = (read + q.numel() * q.itemsize) / speed
    biased = times.torch_seconds(partial(_biased, heads=heads), q, k, k.clone(), size)
    plain = times.torch_seconds(partial(_plain, heads=heads), q, k, k.clone())
    return Row("attend", shape, batch, seconds, bound, biased, plain)


def _importance(shape: Shape, batch: int, speed: float) -> Row:
    draw = torch.Generator().manual_seed(0)
    channels, heads = shape.heads * shape.head_dim, shape.heads
    q = torch.randn(batch, _WORDS, channels, generator=draw).to(shape.dtype)
    k = torch.randn(batch, shape.tokens, channels, generator=draw).to(shape.dtype)
    size, weight = torch.ones(batch, shape.tokens), torch.ones(batch, _WORDS)
    read = (q.numel() + k.numel()) * q.itemsize + 4 * (size.numel() + weight.numel())
    calls = [
        attend_device.importance_call(q, k, size, weight, _WORDS, heads=heads)
        for _ in range(times.sets(read))
    ]
    seconds = times.graph_seconds(calls, _MOST_LAUNCHES)

    def by_torch(q: Tensor, k: Tensor, size: Tensor, weight: Tensor) -> Tensor:
        return EagerOperators().importance(q, k, size, weight, _WORDS, heads)

    of_torch = times.torch_seconds(by_torch, q, k, size, weight)
    bound = (read + size.numel() * 4) / speed
    return Row("importance", shape, batch, seconds, bound, of_torch, None)


def measure(batches: Sequence[int] = (1, 32, 128)) -> Iterator[Row]:
    """Every shape at each batch size."""
    speed = times.bandwidth()
    for shape in SHAPES:
        for batch in batches:
            if batch * max(shape.queries, shape.tokens) <= _MOST_TOKENS:
                yield _attend(shape, batch, speed)
    for shape in (Shape("ViLT-B/32", _WORDS, 185, 12, 64), SHAPES[4]):
        for batch in batches:
            yield _importance(shape, batch, speed)


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.1f}"


def main() -> int:
    """Print the table, or why there is none."""
    why = driver.missing()
    if why is not None:
        print(why, file=sys.stderr)
        return 1
    print("Microseconds\n")
    print("| op | shape | type | batch | kernel | bandwidth bound | PyTorch | without sizes |")
    print("|---|---|---|---|---|---|---|---|")
    for row in measure():
        shape = row.shape
        sizes = f"{shape.name}: {shape.queries} x {shape.tokens}, {shape.heads} x {shape.head_dim}"
        found = (row.seconds, row.bound, row.torch, row.torch_plain)
        name = str(shape.dtype).removeprefix("torch.")
        cells = (row.op, sizes, name, str(row.batch), *map(_microseconds, found))
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
