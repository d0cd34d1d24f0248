"""A bundle's graph under one plan, run as the service runs it: that is what the bench measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from export.bench.measure import Subject
from export.runtime import Session
from models.reduction.workload import Plan

Images: TypeAlias = npt.NDArray[np.uint8]
DIFFERENT = 16
SEED = 0


def random_batches(size: tuple[int, int], batch: int) -> list[Images]:
    """Different batches of noise, (batch, H, W, 3) each, for runs to take turns with.

    Args:
        size: height and width, pixels.
    """
    draw = np.random.default_rng(SEED)
    shape = (batch, *size, 3)
    return [draw.integers(0, 256, shape, dtype=np.uint8) for _ in range(DIFFERENT)]


def of_graph(session: Session, batches: Sequence[Images], plan: Plan, callers: int) -> Subject:
    """One session, run from `callers` threads at once."""

    def run(turn: int) -> object:
        return session.run(batches[turn % len(batches)], plan)

    return Subject(run, callers, len(batches[0]))
