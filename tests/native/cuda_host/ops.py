"""The ops on tensors of this machine, run in several orders of threads that must agree."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.native.cuda_host import interface, library

# Every order of threads that a call is run in.
ORDERS = ((library.ASCENDING, 0), (library.DESCENDING, 0), (library.SHUFFLED, 7))

# A matcher shares an image out among blocks: one, two, and as many as may be.
CLUSTERS = (1, 2, 8)

# Bytes behind and before each output that no kernel may write.
_GUARD = 64
_PATTERN = 0xA5


class Guarded:
    """Memory of an output, no number at first, with guards around it."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, offset: int = 0) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        count = torch.Size(shape).numel() * dtype.itemsize
        self._all = torch.full((2 * _GUARD + 16 + offset + count,), _PATTERN, dtype=torch.uint8)
        start = _GUARD + -(self._all.data_ptr() + _GUARD) % 16 + offset
        self._inside = slice(start, start + count)
        self._all[self._inside] = 0xFF

    @property
    def pointer(self) -> int:
        return self._all.data_ptr() + self._inside.start

    @property
    def bytes(self) -> int:
        return self._inside.stop - self._inside.start

    def result(self) -> Tensor:
        """The tensor.

        Raises:
            AssertionError: something was written around it.
        """
        outside = (self._all[: self._inside.start], self._all[self._inside.stop :])
        assert all(bool((part == _PATTERN).all()) for part in outside), "written out of bounds"
        return self._all[self._inside].clone().view(self.dtype).reshape(self.shape)


def aligned(tensor: Tensor, offset: int = 0) -> Tensor:
    """A copy that starts `offset` bytes behind a multiple of 16."""
    room = Guarded(tensor.shape, tensor.dtype, offset)
    inside = room._all[room._inside].view(tensor.dtype).reshape(tensor.shape)
    inside.copy_(tensor)
    return inside


def _same(results: list[list[Tensor]]) -> list[Tensor]:
    """One of the results.

    Raises:
        AssertionError: they are not all the same, bit for bit.
    """
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one.view(torch.uint8), two.view(torch.uint8)), "a race"
    return results[0]


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _matched(
    op: str, of: ctypes.Structure, batch: int, tokens: int, head_dim: int
) -> tuple[Tensor, Tensor]:
    """The slots, and the bytes of the workspace."""
    results = []
    for (order, seed), cluster in zip(ORDERS, CLUSTERS, strict=True):
        slots = Guarded((batch, tokens), torch.int64)
        space = Guarded((library.workspace_bytes(batch, tokens, head_dim),), torch.uint8)
        of.slots, of.workspace, of.workspace_bytes = slots.pointer, space.pointer, space.bytes
        library.run(op, of, order, seed, processors=cluster * batch)
        results.append([slots.result(), space.result()])
    slots_found, space_found = _same(results)
    return slots_found, space_found


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
    """Slots (B, N) of `match_tome` or `match_pitome`.

    Args:
        keys: (B, N, heads * D) of float32, float16 or bfloat16.
        size: (B, N) float32.
    """
    batch, tokens, channels = keys.shape
    keys, size = keys.contiguous(), size.contiguous()
    of = interface.Match(
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
    return _matched(op, of, batch, tokens, channels // heads)[0]


def unit_metric(keys: Tensor, *, heads: int) -> Tensor:
    """What a matcher compares: the keys' mean over heads, scaled to length 1.

    Args:
        keys: (B, N, heads * D), of N >= 3 tokens.

    Returns:
        (B, N, D rounded up to a multiple of 4) float32.
    """
    ones = torch.ones(keys.shape[:2])
    space = _match_pumer(keys, ones, ones, keys.shape[1], (0, 0, 1), heads)[1]
    return space.view(torch.float32).reshape(*ones.shape, -1)


def match_pumer(
    keys: Tensor, size: Tensor, importance: Tensor, text: int, counts: Sequence[int], *, heads: int
) -> Tensor:
    """Slots (B, N) of `match_pumer`, from counts (prune, merge, merge of the text)."""
    return _match_pumer(keys, size, importance, text, counts, heads)[0]


def _match_pumer(
    keys: Tensor, size: Tensor, importance: Tensor, text: int, counts: Sequence[int], heads: int
) -> tuple[Tensor, Tensor]:
    batch, tokens, channels = keys.shape
    keys, size, importance = keys.contiguous(), size.contiguous(), importance.contiguous()
    prune, merge, merge_text = counts
    of = interface.MatchPuMer(
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
    return _matched("match_pumer", of, batch, tokens, channels // heads)


def reduce(
    x: Tensor, size: Tensor, slots: Tensor, width: int, trace: Tensor | None = None, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, width, D), size' (B, width) and trace' (B, P) of `reduce`.

    Args:
        x: (B, N, D) of float32, float16 or bfloat16.
        trace: (B, P), or None for P = 0.
        offset: bytes behind a multiple of 16 at which x and y start.
    """
    batch, tokens, dim = x.shape
    trace = torch.empty(batch, 0, dtype=torch.int64) if trace is None else trace.contiguous()
    x, size, slots = aligned(x, offset), size.contiguous(), slots.contiguous()
    results = []
    for order, seed in ORDERS:
        y = Guarded((batch, width, dim), x.dtype, offset)
        new_size = Guarded((batch, width), torch.float32)
        new_trace = Guarded(trace.shape, torch.int64)
        of = interface.Reduce(
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
        library.run("reduce", of, order, seed)
        results.append([y.result(), new_size.result(), new_trace.result()])
    return tuple(_same(results))  # type: ignore[return-value]
