"""Schedule: the plan for a requested reduction.

The service computes it for each request, so nothing here imports torch.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from tokenfold.bundle.workload import BaseWorkload, Plan, PlanError, Shape

DEFAULT_LEVELS: dict[str, float] = {
    "exact": 0.0,
    "high": 0.2,
    "balanced": 0.4,
    "fast": 0.55,
    "fastest": 0.7,
}


def flops_ratio(workload: BaseWorkload, plan: Sequence[int]) -> float:
    """Return the FLOPs of a plan relative to the unreduced network, in (0, 1]."""
    return workload.flops(plan) / workload.flops(workload.unreduced)


class Ramp(NamedTuple):
    """ToMe's schedule: counts on a line around r that falls for inflect -1 and rises for 1."""

    r: int
    inflect: float = 0.0


def linear(r: int, inflect: float, depth: int) -> Plan:
    """Return the plan of `Ramp(r, inflect)`."""
    low = int(r * (1.0 - inflect))
    step = (2 * r - 2 * low) / max(depth - 1, 1)
    return tuple(int(low + step * i) for i in range(depth))


def plan_for(workload: BaseWorkload, reduction: float, shape: Shape = "constant") -> Plan:
    """Return the plan whose FLOPs are closest to (1 - reduction) of the unreduced network's.

    The result is monotone: a larger reduction never gives more FLOPs. A reduction beyond the
    network's reach gives its most reduced plan.

    Args:
        reduction: the fraction of FLOPs to remove, 0 to 1.
        shape: distribution of the removed tokens over the layers.

    Raises:
        PlanError: the reduction is not in 0..1.
    """
    if not 0.0 <= reduction <= 1.0:
        raise PlanError(f"the reduction must be between 0 and 1, not {reduction}")
    plans, removed = _savings(workload, shape)
    at = bisect.bisect_left(removed, reduction)
    if at == len(removed) or (at and reduction - removed[at - 1] <= removed[at] - reduction):
        at -= 1
    return plans[at]


def reach(workload: BaseWorkload, shape: Shape = "constant") -> float:
    """Return the largest fraction of FLOPs that a plan of the network removes."""
    _, removed = _savings(workload, shape)
    return removed[-1]


@lru_cache(maxsize=1024)
def _savings(workload: BaseWorkload, shape: Shape) -> tuple[list[Plan], list[float]]:
    """Return the plans of a ladder that save more FLOPs than the one before, and their savings."""
    plans, removed = [workload.unreduced], [0.0]
    full = workload.flops(workload.unreduced)
    for plan in workload.ladder(shape):
        saved = 1.0 - workload.flops(plan) / full
        if saved > removed[-1]:
            plans.append(plan)
            removed.append(saved)
    return plans, removed
