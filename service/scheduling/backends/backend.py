"""The shape of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy.typing as npt

from tokenfold.bundle.tasks import Task
from tokenfold.bundle.workload import Plan

# One item's inputs or outputs by their name in the graph, without the batch dimension.
Sample = Mapping[str, npt.NDArray[Any]]

Step = Literal["answer", "embed", "fuse", "read"]
"""From images to an answer; or in two steps, where several items share an image: from an image to
its tokens, and from tokens to an answer. Or from a text without an image to an answer: to read."""

# The images of an item, and what `embed` makes of them. Two to reason, otherwise one.
PIXELS = ("image", "second_image")
TOKENS = ("image_tokens", "second_image_tokens")


class Call(NamedTuple):
    """What is run. Items of one call may share a batch.

    Attributes:
        plans: one for each image that an item looks at; none to embed, or to read.
        shapes: of these images, (height, width) in pixels.
    """

    step: Step
    task: Task
    plans: tuple[Plan, ...]
    shapes: tuple[tuple[int, int], ...]


class Backend(Protocol):
    """Runs one model. Called from several threads at once.

    Attributes:
        native: whether the compiled reduction ops run, rather than their portable bodies.
        max_concurrent_runs: runs that may be in flight at a time; None if every worker may run
            one.
    """

    @property
    def native(self) -> bool: ...

    @property
    def max_concurrent_runs(self) -> int | None: ...

    def batch_size_for(self, call: Call, waiting: int, /) -> int:
        """How many of the `waiting` items of one call, 1 or more, make the next run.

        1 where runs beside each other beat batches, or where items of one run would change each
        other.
        """
        ...

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        """Run one batch.

        Args:
            samples: 1 item, or as many as `batch_size_for` says. Each has what `PIXELS` names,
                (H, W, 3) uint8, or to fuse what `TOKENS` names, (I, D) float32; and with a text
                `input_ids`, (T,) int64. Texts of one batch may differ in length: padding has size
                0, which attention ignores.
            slots: whether to return the composed slots too.

        Returns:
            For each item `logits`, (classes,) float32, or of the task "embed" `vector`, (width,)
            float32 of length 1; and if asked the slots, int64: of an image `slots`, (tokens,); of
            an image with a text `text_slots`, (T,), and `image_slots`, (I,), and of a second image
            `second_text_slots` and `second_image_slots`. To embed `image_tokens`, (I, D).
        """
        ...

    def close(self) -> None:
        """Give back what it holds. Nothing runs, and nothing will."""
        ...
