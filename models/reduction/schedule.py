"""How much to reduce: exact FLOPs of a plan, and the plan for a requested reduction.

A *plan* is one count per layer: how many tokens that layer removes. FLOPs are multiply-accumulates
of every matrix product, the convention of the papers (DeiT-S is 4.6 G). No torch in here: the
service turns requests into plans with this module.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["none", "tome", "pitome"]
Shape = Literal["constant", "increasing", "decreasing"]
Plan = tuple[int, ...]

DEFAULT_LEVELS: dict[str, float] = {
    "exact": 0.0,
    "high": 0.2,
    "balanced": 0.4,
    "fast": 0.55,
    "fastest": 0.7,
}


class PlanError(ValueError):
    """A plan or reduction that no network of this size can take."""


class Workload(BaseModel):
    """What decides the FLOPs of one image in a transformer encoder with reducing layers.

    Attributes:
        method: the matcher, whose similarity matrix costs a matrix product too.
        tokens: tokens that enter the first layer, protected ones included.
        protected: leading tokens that are never merged away (class, distillation).
        depth, dim: layers, and the width of a token.
        mlp_dim: hidden width of the MLP; mlp_products: matrix products in it (2, or 3 when gated).
        metric_dim: width of the matcher's metric (one attention head).
        stem: multiply-accumulates before the first layer (patch embedding).
        head: multiply-accumulates after the last one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method
    tokens: int = Field(ge=1)
    protected: int = Field(ge=0)
    depth: int = Field(ge=1)
    dim: int = Field(ge=1)
    mlp_dim: int = Field(ge=1)
    mlp_products: int = Field(default=2, ge=2, le=3)
    metric_dim: int = Field(ge=1)
    stem: int = Field(ge=0)
    head: int = Field(ge=0)


def clamp(r: int, tokens: int, protected: int) -> int:
    """The tokens that a layer really merges when asked for r: at most half of the unprotected."""
    return max(0, min(r, (tokens - protected) // 2))


def widths(workload: Workload, plan: Sequence[int]) -> list[int]:
    """Token counts before the first layer and after each: length depth + 1.

    Raises:
        PlanError: the plan has another length than the network, or a negative count.
    """
    if len(plan) != workload.depth:
        raise PlanError(f"a plan has one count per layer: {workload.depth}, not {len(plan)}")
    if any(r < 0 for r in plan):
        raise PlanError(f"a plan's counts are 0 or more, not {min(plan)}")
    counts = [workload.tokens]
    for r in plan:
        counts.append(counts[-1] - clamp(r, counts[-1], workload.protected))
    return counts


def flops(workload: Workload, plan: Sequence[int]) -> int:
    """Multiply-accumulates of one image: every matrix product, matching included.

    A layer attends over its incoming tokens, reduces, and runs its MLP on what is left
    (ToMe, section 3).
    """
    counts = widths(workload, plan)
    d = workload.dim
    total = workload.stem + workload.head
    for before, after in itertools.pairwise(counts):
        total += 4 * before * d * d + 2 * before * before * d
        total += workload.mlp_products * after * d * workload.mlp_dim
        if after < before:
            total += _matching_flops(workload, before)
    return total


def _matching_flops(workload: Workload, tokens: int) -> int:
    if workload.method == "tome":
        return ((tokens + 1) // 2) * (tokens // 2) * workload.metric_dim
    return tokens * tokens * workload.metric_dim


def flops_ratio(workload: Workload, plan: Sequence[int]) -> float:
    """FLOPs of the plan over those of the unreduced network, in (0, 1]."""
    return flops(workload, plan) / flops(workload, [0] * workload.depth)


class Ramp(NamedTuple):
    """ToMe's own schedule: a line through r, falling for inflect -1, level for 0, rising for 1."""

    r: int
    inflect: float = 0.0


def linear(r: int, inflect: float, depth: int) -> Plan:
    """The plan of `Ramp(r, inflect)`."""
    low = int(r * (1.0 - inflect))
    step = (2 * r - 2 * low) / max(depth - 1, 1)
    return tuple(int(low + step * i) for i in range(depth))


def plan_for(workload: Workload, reduction: float, shape: Shape = "constant") -> Plan:
    """The reachable plan whose FLOPs are closest to (1 - reduction) of the unreduced network's.

    Monotone: a larger request never gives more FLOPs. A request beyond what the network can reach
    gets its most reduced plan.

    Args:
        reduction: the fraction of FLOPs to remove, 0 to 1.
        shape: how the removed tokens spread over the layers.

    Raises:
        PlanError: the reduction is not in 0..1.
    """
    if not 0.0 <= reduction <= 1.0:
        raise PlanError(f"a reduction is between 0 and 1, not {reduction}")
    plans, removed = _family(workload, shape)
    at = bisect.bisect_left(removed, reduction)
    if at == len(removed) or (at and reduction - removed[at - 1] <= removed[at] - reduction):
        at -= 1
    return plans[at]


@lru_cache(maxsize=256)
def _family(workload: Workload, shape: Shape) -> tuple[list[Plan], list[float]]:
    """Every reachable plan of a shape, by rising reduction, with the FLOPs fraction each removes.

    Tokens are handed out one at a time by Sainte-Lague's divisor rule on the shape's weights. Each
    plan contains the one before it, which makes the FLOPs monotone, and steps are single tokens,
    far finer than stepping every layer at once.
    """
    depth = workload.depth
    zero = (0,) * depth
    full = flops(workload, zero)
    plans, removed = [zero], [0.0]
    if workload.method == "none":
        return plans, removed
    raw = [0] * depth
    # (votes already won) / weight decides who gets the next token; ties go to the first layer.
    heap = [(1.0 / w, i, w) for i, w in enumerate(_weights(shape, depth)) if w > 0]
    heapq.heapify(heap)
    while heap:
        _, layer, weight = heap[0]
        raw[layer] += 1
        counts = widths(workload, raw)
        if counts[layer] - counts[layer + 1] < raw[layer]:
            # This layer is full, and only gets fuller as earlier layers take more.
            raw[layer] -= 1
            heapq.heappop(heap)
            continue
        heapq.heapreplace(heap, ((2 * raw[layer] + 1) / weight, layer, weight))
        effective = tuple(a - b for a, b in itertools.pairwise(counts))
        saved = 1.0 - flops(workload, effective) / full
        if saved > removed[-1]:
            plans.append(effective)
            removed.append(saved)
    return plans, removed


def _weights(shape: Shape, depth: int) -> list[float]:
    rising = [2.0 * i / (depth - 1) for i in range(depth)] if depth > 1 else [1.0]
    if shape == "increasing":
        return rising
    if shape == "decreasing":
        return rising[::-1]
    return [1.0] * depth
