"""Attend and Importance on tensors of this machine, in orders of threads that must agree."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tests.native.cuda_host import interface, library
from tests.native.cuda_host.ops import ORDERS, Guarded, aligned


def importance_bytes(batch: int, tokens: int, heads: int) -> int:
    """Bytes of workspace that Importance asks for."""
    return int(library.load().tokenfold_cuda_importance_workspace(batch, tokens, heads))


def rows(tensor: Tensor, gap: int = 0, offset: int = 0) -> tuple[Tensor, int]:
    """A copy of (B, N, C) whose rows lie `gap` elements, no numbers, further apart; its stride.

    Args:
        offset: bytes behind a multiple of 16 at which it starts.
    """
    batch, tokens, channels = tensor.shape
    wide = torch.full((batch, tokens, channels + gap), float("nan"), dtype=tensor.dtype)
    wide[:, :, :channels] = tensor
    return aligned(wide, offset), channels + gap


def attend_of(q: Tensor, k: Tensor, strides: tuple[int, int, int], heads: int) -> interface.Attend:
    """The structure, without pointers.

    Args:
        q: (B, Q, C); k: (B, N, C).
        strides: elements from row to row of q, k and v.
    """
    batch, queries, channels = q.shape
    head_dim = channels // heads
    of = interface.Attend(type=interface.TYPES[q.dtype], batch=batch, queries=queries)
    of.tokens, of.heads, of.head_dim, of.scale = k.shape[1], heads, head_dim, head_dim**-0.5
    of.q_stride, of.k_stride, of.v_stride = strides
    return of


def importance_of(
    q: Tensor, k: Tensor, strides: tuple[int, int], asked: int, heads: int
) -> interface.Importance:
    """The structure, without pointers."""
    batch, queries, channels = q.shape
    head_dim = channels // heads
    of = interface.Importance(type=interface.TYPES[q.dtype], batch=batch, queries=queries)
    of.tokens, of.heads, of.head_dim, of.scale = k.shape[1], heads, head_dim, head_dim**-0.5
    of.q_stride, of.k_stride, of.asked = *strides, asked
    return of


def same(results: list[Tensor]) -> Tensor:
    """The one result of several runs.

    Raises:
        AssertionError: they differ in a bit.
    """
    for other in results[1:]:
        assert torch.equal(results[0].view(torch.uint8), other.view(torch.uint8)), "a race"
    return results[0]


def _point(of: ctypes.Structure, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        setattr(of, name, tensor.data_ptr())


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor,
    *,
    heads: int,
    gaps: tuple[int, int, int] = (0, 0, 0),
    offset: int = 0,
) -> Tensor:
    """out (B, Q, C) of `attend`, scaled by the root of a head's width.

    Args:
        q: (B, Q, C) of float32, float16 or bfloat16; k, v: (B, N, C).
        size: (B, N) float32.
        gaps: elements between the rows of q, k and v.
        offset: bytes behind a multiple of 16 at which q, k, v and out start.
    """
    (own_q, q_stride), (own_k, k_stride), (own_v, v_stride) = (
        rows(tensor, gap, offset) for tensor, gap in zip((q, k, v), gaps, strict=True)
    )
    of = attend_of(q, k, (q_stride, k_stride, v_stride), heads)
    size = size.contiguous()
    _point(of, q=own_q, k=own_k, v=own_v, size=size)
    results = []
    for order, seed in ORDERS:
        out = Guarded(q.shape, q.dtype, offset)
        of.out = out.pointer
        library.run("attend", of, order, seed)
        results.append(out.result())
    return same(results)


def importance(
    q: Tensor,
    k: Tensor,
    size: Tensor,
    query_size: Tensor,
    asked: int,
    *,
    heads: int,
    gaps: tuple[int, int] = (0, 0),
) -> Tensor:
    """importance (B, N) of `importance`.

    Args:
        q: (B, Q, C) of float32, float16 or bfloat16; k: (B, N, C).
        size: (B, N) float32; query_size: (B, Q) float32.
    """
    (own_q, q_stride), (own_k, k_stride) = (
        rows(tensor, gap) for tensor, gap in zip((q, k), gaps, strict=True)
    )
    of = importance_of(q, k, (q_stride, k_stride), asked, heads)
    size, query_size = size.contiguous(), query_size.contiguous()
    _point(of, q=own_q, k=own_k, size=size, query_size=query_size)
    results = []
    for order, seed in ORDERS:
        out = Guarded(size.shape, torch.float32)
        space = Guarded((importance_bytes(len(q), k.shape[1], heads),), torch.uint8)
        of.importance, of.workspace, of.workspace_bytes = out.pointer, space.pointer, space.bytes
        library.run("importance", of, order, seed)
        space.result()
        results.append(out.result())
    return same(results)
