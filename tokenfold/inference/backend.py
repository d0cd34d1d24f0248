"""Backend: the interface of everything that runs a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy.typing as npt

from tokenfold.bundle.tasks import Task
from tokenfold.bundle.workload import Plan

Sample = Mapping[str, npt.NDArray[Any]]
"""Inputs or outputs of one item by their name in the graph, without the batch dimension."""

Step = Literal["answer", "embed", "fuse", "read"]
"""The part of a model that a run executes.

- `answer`: from images, with their text if there is one, to the answer.
- `embed`: from an image that several items share to its tokens.
- `fuse`: from the tokens of embedded images and a text to the answer.
- `read`: from a text without an image to its vector.
"""

PIXELS = ("image", "second_image")
"""Names of an item's images. The task `reason` has two, every other task one."""
TOKENS = ("image_tokens", "second_image_tokens")
"""Names of the tokens that `embed` makes of the images `PIXELS`."""

Shape = tuple[int, int]
"""(height, width) in pixels."""


class Call(NamedTuple):
    """The kind of a run. Items of the same call may share a batch.

    Attributes:
        step: the part of the model.
        task: the task it is part of.
        plans: plan of each image of an item; none for the steps `embed` and `read`.
        shapes: shape of each image of an item.
    """

    step: Step
    task: Task
    plans: tuple[Plan, ...]
    shapes: tuple[Shape, ...]


class Backend(Protocol):
    """Runs one model. Called from several threads at once.

    Attributes:
        native: whether the compiled reduction ops run, rather than their portable bodies.
        max_concurrent_runs: runs that may be in flight at a time; None if every worker may run one.
    """

    @property
    def native(self) -> bool: ...

    @property
    def max_concurrent_runs(self) -> int | None: ...

    def batch_size_for(self, call: Call, waiting: int, /) -> int:
        """Return the number of items of the next run, out of `waiting` items (1 or more).

        It is 1 where concurrent runs are faster than batches, or where the items of a batch would
        influence each other.
        """
        ...

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """Run one batch.

        Args:
            samples: 1 item, or at most `batch_size_for` items. Each has the inputs that `PIXELS`
                names, (H, W, 3) uint8, or for `fuse` those that `TOKENS` names, (I, D) float32; and
                with a text `input_ids`, (T,) int64. Texts of one batch may differ in length.
            call: the kind of run, the same for all samples.
            slots: whether to return the composed slots too.

        Returns:
            The outputs of each item: `logits`, (classes,) float32, or for the task `embed`
            `vector`, (width,) float32 of length 1. With `slots` also, int64: for an image `slots`,
            (tokens,); for an image with a text `text_slots`, (T,), and `image_slots`, (I,), and for
            a second image `second_text_slots` and `second_image_slots`. For the step `embed`
            `image_tokens`, (I, D).
        """
        ...

    def close(self) -> None:
        """Release its resources. No run is in flight, and none follows."""
        ...
