"""Slots: the output position of each token of a layer, the mechanism behind every reduction.

`slots[b, i]` is the output position of input token i of image b, or -1 if it is dropped. Matchers
choose slots; `reduce` moves the data; `compose` chains layers, so that the composed slots of a
network tell which patches each final token stands for.
"""

from __future__ import annotations

import torch
from torch import Tensor

DROPPED = -1


def identity(batch: int, tokens: int, device: torch.device | str | None = None) -> Tensor:
    """Return slots (B, N) int64 that leave every token in its position."""
    return torch.arange(tokens, device=device).expand(batch, tokens)


def reduce(x: Tensor, size: Tensor, slots: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Move tokens to their slots; tokens that share a slot are averaged, weighted by size.

    `y[s] = sum over i in s of size_i x_i / sum size_i`, `size'[s] = sum size_i` (ToMe, section 3).

    Args:
        x: (B, N, D) of any float type; sums use float32 or wider.
        size: (B, N) float32, patches per token; 0 marks padding, which moves nothing.
        slots: (B, N) int64, each -1 or in 0..width-1.
        width: number of output tokens.

    Returns:
        y (B, width, D) of x's type, and size' (B, width). An empty slot has zeros and size 0.
    """
    batch, _, dim = x.shape
    weight = size * (slots >= 0)
    index = slots.clamp_min(0)
    new_size = size.new_zeros(batch, width).scatter_add(1, index, weight)
    # A token that is alone in its slot must stay bit-identical: its share is s / s = 1.
    share = weight / new_size.gather(1, index).clamp_min(torch.finfo(size.dtype).tiny)
    moved = x.to(torch.promote_types(x.dtype, torch.float32)) * share.unsqueeze(-1)
    y = moved.new_zeros(batch, width, dim)
    y = y.scatter_add(1, index.unsqueeze(-1).expand(-1, -1, dim), moved)
    return y.to(x.dtype), new_size


def compose(trace: Tensor, slots: Tensor) -> Tensor:
    """Map positions (B, P) in a layer's input to positions in its output."""
    followed = slots.gather(1, trace.clamp_min(0))
    return torch.where(trace < 0, trace, followed)


def absent_last(slots: Tensor, size: Tensor, width: int) -> Tensor:
    """Reorder slots so that those without a present token come last.

    Args:
        slots: (B, N), each in 0..width-1.
        size: (B, N), 0 for an absent token.
    """
    present = size > 0
    if bool(present.all()):
        return slots
    filled = size.new_zeros(size.shape[0], width).scatter_add(1, slots, present.to(size.dtype))
    order = (filled == 0).to(torch.int64).argsort(dim=-1, stable=True)
    return order.argsort(dim=-1).gather(1, slots)


def unmerge(y: Tensor, trace: Tensor) -> Tensor:
    """Return the value of the token that stands for each input token; zeros for dropped ones.

    Args:
        y: (B, M, D) reduced tokens.
        trace: (B, P) slots, of one layer or composed over several.

    Returns:
        (B, P, D).
    """
    index = trace.clamp_min(0).unsqueeze(-1).expand(-1, -1, y.shape[-1])
    return y.gather(1, index) * (trace >= 0).unsqueeze(-1)


def source(trace: Tensor, width: int) -> Tensor:
    """Map slots (B, P) to the source matrix (B, width, P) bool: inputs of each output token."""
    positions = torch.arange(width, device=trace.device)
    return trace.unsqueeze(1) == positions[None, :, None]
