"""Attend and Importance on the CPU, run in several thread orders that must give equal results."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tests.native.cuda_host import interface, library
from tests.native.cuda_host.ops import ORDERS, Guarded, aligned

_RACE = "a race: results depend on the thread order"


def importance_bytes(batch: int, tokens: int, heads: int) -> int:
    """Return the workspace size of Importance in bytes."""
    return int(library.load().tokenfold_cuda_importance_workspace(batch, tokens, heads))


def rows(tensor: Tensor, gap: int = 0, offset: int = 0) -> tuple[Tensor, int]:
    """Copy (B, N, C) with gaps of NaNs between rows; return the copy and its row stride.

    Args:
        gap: number of elements between two rows.
        offset: bytes between a multiple of 16 and the start of the copy.
    """
    batch, tokens, channels = tensor.shape
    wide = torch.full((batch, tokens, channels + gap), float("nan"), dtype=tensor.dtype)
    wide[:, :, :channels] = tensor
    return aligned(wide, offset), channels + gap


def attend_arguments(
    q: Tensor, k: Tensor, strides: tuple[int, int, int], heads: int
) -> interface.Attend:
    """Return the arguments of Attend, without pointers.

    Args:
        q: (B, Q, C); k: (B, N, C).
        strides: distance between rows of q, k and v, in elements.
    """
    batch, queries, channels = q.shape
    head_dim = channels // heads
    arguments = interface.Attend(type=interface.TYPES[q.dtype], batch=batch, queries=queries)
    arguments.tokens, arguments.heads, arguments.head_dim, arguments.scale = (
        k.shape[1],
        heads,
        head_dim,
        head_dim**-0.5,
    )
    arguments.q_stride, arguments.k_stride, arguments.v_stride = strides
    return arguments


def importance_arguments(
    q: Tensor, k: Tensor, strides: tuple[int, int], asked: int, heads: int
) -> interface.Importance:
    """Return the arguments of Importance, without pointers."""
    batch, queries, channels = q.shape
    head_dim = channels // heads
    arguments = interface.Importance(type=interface.TYPES[q.dtype], batch=batch, queries=queries)
    arguments.tokens, arguments.heads, arguments.head_dim, arguments.scale = (
        k.shape[1],
        heads,
        head_dim,
        head_dim**-0.5,
    )
    arguments.q_stride, arguments.k_stride, arguments.asked = *strides, asked
    return arguments


def same(results: list[Tensor]) -> Tensor:
    """Return the result of several runs, which must be equal bit for bit.

    Raises:
        AssertionError: the results differ.
    """
    for other in results[1:]:
        assert torch.equal(results[0].view(torch.uint8), other.view(torch.uint8)), _RACE
    return results[0]


def _set_pointers(arguments: ctypes.Structure, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        setattr(arguments, name, tensor.data_ptr())


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
    """Run `attend` with scale head_dim**-0.5, and return its output (B, Q, C).

    Args:
        q: (B, Q, C) of float32, float16 or bfloat16; k, v: (B, N, C).
        size: (B, N) float32.
        gaps: number of elements between the rows of q, k and v.
        offset: bytes between a multiple of 16 and the start of q, k, v and out.
    """
    (q_rows, q_stride), (k_rows, k_stride), (v_rows, v_stride) = (
        rows(tensor, gap, offset) for tensor, gap in zip((q, k, v), gaps, strict=True)
    )
    arguments = attend_arguments(q, k, (q_stride, k_stride, v_stride), heads)
    size = size.contiguous()
    _set_pointers(arguments, q=q_rows, k=k_rows, v=v_rows, size=size)
    results = []
    for order, seed in ORDERS:
        out = Guarded(q.shape, q.dtype, offset)
        arguments.out = out.pointer
        library.run("attend", arguments, order, seed)
        results.append(out.result())
    return same(results)


def importance(
    q: Tensor,
    k: Tensor,
    size: Tensor,
    query_size: Tensor,
    queries: int,
    *,
    heads: int,
    gaps: tuple[int, int] = (0, 0),
) -> Tensor:
    """Run `importance`, and return its output (B, N).

    Args:
        q: (B, Q, C) of float32, float16 or bfloat16; k: (B, N, C).
        size: (B, N) float32; query_size: (B, Q) float32.
    """
    (q_rows, q_stride), (k_rows, k_stride) = (
        rows(tensor, gap) for tensor, gap in zip((q, k), gaps, strict=True)
    )
    arguments = importance_arguments(q, k, (q_stride, k_stride), queries, heads)
    size, query_size = size.contiguous(), query_size.contiguous()
    _set_pointers(arguments, q=q_rows, k=k_rows, size=size, query_size=query_size)
    results = []
    for order, seed in ORDERS:
        out = Guarded(size.shape, torch.float32)
        space = Guarded((importance_bytes(len(q), k.shape[1], heads),), torch.uint8)
        arguments.importance, arguments.workspace, arguments.workspace_bytes = (
            out.pointer,
            space.pointer,
            space.bytes,
        )
        library.run("importance", arguments, order, seed)
        space.result()
        results.append(out.result())
    return same(results)
