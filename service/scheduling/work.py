"""What a run costs, counted: tokens and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.workload import BaseWorkload, DualWorkload, Plan


class Size(NamedTuple):
    """Tokens of what is asked, special ones included. Of a network that sees images with texts."""

    text: int
    image: int


class Work(NamedTuple):
    """What a plan costs for one image, or for one image with a text; or a text by itself.

    Attributes:
        flops: multiply-accumulates; `full` those of the unreduced network; `ratio` the quotient.
        tokens_in, tokens_out: before the first layer, and after the last.
        embedding: of the FLOPs those that several texts about one image share.
    """

    flops: int
    full: int
    ratio: float
    tokens_in: int
    tokens_out: int
    embedding: int = 0

    @classmethod
    def of(cls, workload: BaseWorkload, plan: Plan) -> Work:
        """Of a plan on a workload."""
        counts = workload.widths(plan)
        spent, full = workload.flops(plan), workload.flops(workload.unreduced)
        embedding = workload.embedding if isinstance(workload, PairWorkload) else 0
        return cls(spent, full, spent / full, counts[0], counts[-1], embedding)

    @classmethod
    def of_text(cls, workload: BaseWorkload, tokens: int) -> Work:
        """Of a text of so many tokens by itself, which nothing reduces.

        Raises:
            TypeError: the network takes no texts by themselves.
        """
        if not isinstance(workload, DualWorkload):
            raise TypeError("a text by itself is read by dual encoders alone")
        spent = workload.text_flops(tokens)
        return cls(spent, spent, 1.0, tokens, tokens)


Works = tuple[Work, ...]
"""Of one item: one for each image that it looks at, or one of its text."""


def total(works: Sequence[Work]) -> Work:
    """Several as one."""
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
