"""How many runs a device has on their way, and how many items make one."""

from __future__ import annotations

from tokenfold.runtime.cuda import buckets
from tokenfold.runtime.cuda.lanes import IN_FLIGHT
from tokenfold.runtime.graph import Device


def max_concurrent_runs(device: Device) -> int | None:
    """Runs that may be on their way at a time; None for as many as there are workers."""
    return None if device == "cpu" else IN_FLIGHT


def take(device: Device, waiting: int, *, beside: int = 1, most: int) -> int:
    """How many of the waiting items make the next run.

    Args:
        beside: on a CPU, at most; 1 where runs beside each other beat batches (measured, see
            reference/export.md).
        most: on a GPU, at most: what waits while it is busy shares a run.
    """
    return min(waiting, beside) if device == "cpu" else buckets.fill(waiting, most)
