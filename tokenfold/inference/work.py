"""The cost of a run in tokens and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.workload import BaseWorkload, DualWorkload, Plan


class Size(NamedTuple):
    """Tokens of a text and an image, special tokens included."""

    text: int
    image: int


class Work(NamedTuple):
    """The cost of one image, of one image with a text, or of a text by itself.

    Attributes:
        flops: multiply-accumulates.
        full: multiply-accumulates of the unreduced network.
        ratio: `flops` divided by `full`.
        tokens_in: tokens before the first layer.
        tokens_out: tokens after the last layer.
        embedding: the part of `flops` that several texts about one image share.
    """

    flops: int
    full: int
    ratio: float
    tokens_in: int
    tokens_out: int
    embedding: int = 0

    @classmethod
    def of(cls, workload: BaseWorkload, plan: Plan) -> Work:
        """Return the cost of a plan."""
        counts = workload.widths(plan)
        spent, full = workload.flops(plan), workload.flops(workload.unreduced)
        embedding = workload.embedding if isinstance(workload, PairWorkload) else 0
        return cls(spent, full, spent / full, counts[0], counts[-1], embedding)

    @classmethod
    def of_text(cls, workload: BaseWorkload, tokens: int) -> Work:
        """Return the cost of a text of `tokens` tokens by itself, which is not reduced.

        Raises:
            TypeError: the network is no dual encoder.
        """
        if not isinstance(workload, DualWorkload):
            raise TypeError("only dual encoders read texts by themselves")
        spent = workload.text_flops(tokens)
        return cls(spent, spent, 1.0, tokens, tokens)


Works = tuple[Work, ...]
"""The cost of an item: a `Work` for each of its images, or one for its text."""


def total(works: Sequence[Work]) -> Work:
    """Return the sum of several costs."""
    if len(works) == 1:
        return works[0]
    spent, full = sum(work.flops for work in works), sum(work.full for work in works)
    return Work(
        spent,
        full,
        spent / full,
        sum(work.tokens_in for work in works),
        sum(work.tokens_out for work in works),
        sum(work.embedding for work in works),
    )
