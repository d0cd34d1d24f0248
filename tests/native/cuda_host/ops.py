"""The ops on the CPU, run in several thread orders that must give equal results."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.native.cuda_host import interface, library

# Thread orders that each call is run in, with the seed of the shuffled one.
ORDERS = ((library.ASCENDING, 0), (library.DESCENDING, 0), (library.SHUFFLED, 7))

# Numbers of blocks that share an image in a matcher: one, two, and the maximum.
CLUSTERS = (1, 2, 8)

# Bytes before and after each output, and the pattern in them, which no kernel may overwrite.
_GUARD = 64
_PATTERN = 0xA5

_RACE = "a race: results depend on the thread order"


class Guarded:
    """Memory of an output between two guards, initialised to all ones bits (NaN)."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, offset: int = 0) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        count = torch.Size(shape).numel() * dtype.itemsize
        self._memory = torch.full((2 * _GUARD + 16 + offset + count,), _PATTERN, dtype=torch.uint8)
        start = _GUARD + -(self._memory.data_ptr() + _GUARD) % 16 + offset
        self._content = slice(start, start + count)
        self._memory[self._content] = 0xFF

    @property
    def pointer(self) -> int:
        return self._memory.data_ptr() + self._content.start

    @property
    def bytes(self) -> int:
        return self._content.stop - self._content.start

    def result(self) -> Tensor:
        """Return the output.

        Raises:
            AssertionError: a guard was overwritten.
        """
        guards = (self._memory[: self._content.start], self._memory[self._content.stop :])
        assert all(bool((guard == _PATTERN).all()) for guard in guards), "written out of bounds"
        return self._memory[self._content].clone().view(self.dtype).reshape(self.shape)


def aligned(tensor: Tensor, offset: int = 0) -> Tensor:
    """Copy a tensor to memory that starts `offset` bytes after a multiple of 16."""
    guarded = Guarded(tensor.shape, tensor.dtype, offset)
    copy = guarded._memory[guarded._content].view(tensor.dtype).reshape(tensor.shape)
    copy.copy_(tensor)
    return copy


def _same(results: list[list[Tensor]]) -> list[Tensor]:
    """Return the results of the first run, which all runs must equal bit for bit.

    Raises:
        AssertionError: the results of two runs differ.
    """
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(first.view(torch.uint8), second.view(torch.uint8)), _RACE
    return results[0]


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _run_matcher(
    op: str, arguments: ctypes.Structure, batch: int, tokens: int, head_dim: int
) -> tuple[Tensor, Tensor]:
    """Return the slots, and the content of the workspace."""
    results = []
    for (order, seed), cluster in zip(ORDERS, CLUSTERS, strict=True):
        slots = Guarded((batch, tokens), torch.int64)
        space = Guarded((library.workspace_bytes(batch, tokens, head_dim),), torch.uint8)
        arguments.slots, arguments.workspace = slots.pointer, space.pointer
        arguments.workspace_bytes = space.bytes
        library.run(op, arguments, order, seed, processors=cluster * batch)
        results.append([slots.result(), space.result()])
    slots_result, workspace = _same(results)
    return slots_result, workspace


def match(
    op: str,
    keys: Tensor,
    size: Tensor,
    r: int,
    *,
    heads: int,
    protected: int,
    margin: float = 0.0,
) -> Tensor:
    """Run `match_tome` or `match_pitome`, and return the slots (B, N).

    Args:
        keys: (B, N, heads * D) of float32, float16 or bfloat16.
        size: (B, N) float32.
    """
    batch, tokens, channels = keys.shape
    keys, size = keys.contiguous(), size.contiguous()
    arguments = interface.Match(
        type=interface.TYPES[keys.dtype],
        batch=batch,
        tokens=tokens,
        heads=heads,
        head_dim=channels // heads,
        protected_tokens=protected,
        r=r,
        margin=margin,
        keys=_address(keys),
        size=_address(size),
    )
    return _run_matcher(op, arguments, batch, tokens, channels // heads)[0]


def unit_metric(keys: Tensor, *, heads: int) -> Tensor:
    """Return the vectors that a matcher compares: the keys' mean over heads, scaled to length 1.

    Args:
        keys: (B, N, heads * D), with N >= 3 tokens.

    Returns:
        (B, N, D rounded up to a multiple of 4) float32.
    """
    ones = torch.ones(keys.shape[:2])
    space = _match_pumer(keys, ones, ones, keys.shape[1], (0, 0, 1), heads)[1]
    return space.view(torch.float32).reshape(*ones.shape, -1)


def match_pumer(
    keys: Tensor, size: Tensor, importance: Tensor, text: int, counts: Sequence[int], *, heads: int
) -> Tensor:
    """Run `match_pumer` with counts (prune, merge, merge_text), and return the slots (B, N)."""
    return _match_pumer(keys, size, importance, text, counts, heads)[0]


def _match_pumer(
    keys: Tensor, size: Tensor, importance: Tensor, text: int, counts: Sequence[int], heads: int
) -> tuple[Tensor, Tensor]:
    batch, tokens, channels = keys.shape
    keys, size, importance = keys.contiguous(), size.contiguous(), importance.contiguous()
    prune, merge, merge_text = counts
    arguments = interface.MatchPuMer(
        type=interface.TYPES[keys.dtype],
        batch=batch,
        tokens=tokens,
        heads=heads,
        head_dim=channels // heads,
        text=text,
        prune=prune,
        merge=merge,
        merge_text=merge_text,
        keys=_address(keys),
        size=_address(size),
        importance=_address(importance),
    )
    return _run_matcher("match_pumer", arguments, batch, tokens, channels // heads)


def reduce(
    x: Tensor, size: Tensor, slots: Tensor, width: int, trace: Tensor | None = None, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `reduce`, and return y (B, width, D), size' (B, width) and trace' (B, P).

    Args:
        x: (B, N, D) of float32, float16 or bfloat16.
        trace: (B, P); None for P = 0.
        offset: bytes between a multiple of 16 and the start of x and y.
    """
    batch, tokens, dim = x.shape
    trace = torch.empty(batch, 0, dtype=torch.int64) if trace is None else trace.contiguous()
    x, size, slots = aligned(x, offset), size.contiguous(), slots.contiguous()
    results = []
    for order, seed in ORDERS:
        y = Guarded((batch, width, dim), x.dtype, offset)
        new_size = Guarded((batch, width), torch.float32)
        new_trace = Guarded(trace.shape, torch.int64)
        arguments = interface.Reduce(
            type=interface.TYPES[x.dtype],
            batch=batch,
            tokens=tokens,
            width=width,
            dim=dim,
            patches=trace.shape[1],
            x=_address(x),
            size=_address(size),
            slots=_address(slots),
            trace=_address(trace),
            y=y.pointer,
            new_size=new_size.pointer,
            new_trace=new_trace.pointer,
        )
        library.run("reduce", arguments, order, seed)
        results.append([y.result(), new_size.result(), new_trace.result()])
    return tuple(_same(results))  # type: ignore[return-value]
