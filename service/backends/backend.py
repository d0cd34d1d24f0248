"""The shape of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from models.reduction.workload import Plan

# One item's inputs or outputs by their name in the graph, without the batch dimension.
Sample = Mapping[str, npt.NDArray[Any]]


class Backend(Protocol):
    """Runs one model. Called from several threads at once.

    Attributes:
        max_batch: most items of one run; 1 where runs beside each other beat batches.
        native: whether the compiled reduction ops run, rather than their portable bodies.
    """

    @property
    def max_batch(self) -> int: ...

    @property
    def native(self) -> bool: ...

    def run(self, samples: Sequence[Sample], plan: Plan, *, slots: bool) -> Sequence[Sample]:
        """Run one batch.

        Args:
            samples: 1 to `max_batch` items, each with `image`, (H, W, 3) uint8.
            plan: tokens that each layer removes, the same for all.
            slots: whether to return the composed slots too.

        Returns:
            For each item `logits`, (classes,) float32, and if asked `slots`, (tokens,) int64.
        """
        ...
