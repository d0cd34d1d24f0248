"""Optimization profiles: the input sizes that an engine of each graph is built for.

There are a few ranges of batch sizes, because the kernels that are fastest for one image are not
the fastest for a hundred. All other sizes vary freely within each profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Self

from tokenfold.bundle.document import Document
from tokenfold.bundle.manifest import IMAGE, JOINT, MODEL, TEXT, VISION, Manifest
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.runtime.cuda.buckets import MAX_BATCH


class SizeRange(Document):
    """A range of sizes: minimum, the size to optimise for, and maximum."""

    min: int
    opt: int
    max: int

    @classmethod
    def fixed(cls, size: int) -> Self:
        """Return the range of a size that does not vary."""
        return cls(min=size, opt=size, max=size)


BATCH_RANGES = (
    SizeRange.fixed(1),
    SizeRange(min=2, opt=8, max=32),
    SizeRange(min=33, opt=MAX_BATCH, max=MAX_BATCH),
)
"""Ranges of the number of items in a run."""


class OptimizationProfile(Document):
    """The sizes for one range of batch sizes.

    Attributes:
        batch: range of the first dimension of every input with dynamic sizes.
        sizes: ranges of the other dynamic dimensions of each input, in order.
        plan: range of each count of the plan; empty if the graph has no plan or a fixed one.
    """

    batch: SizeRange
    sizes: dict[str, tuple[SizeRange, ...]]
    plan: tuple[SizeRange, ...] = ()

    def shape(self, name: str, shape: Sequence[int]) -> tuple[SizeRange, ...]:
        """Return the range of each dimension of an input.

        Args:
            shape: the input's shape, with -1 for dynamic sizes.
        """
        dynamic = iter((self.batch, *self.sizes.get(name, ())))
        return tuple(next(dynamic) if size < 0 else SizeRange.fixed(size) for size in shape)


def optimization_profiles(
    manifest: Manifest,
    graph: str,
    *,
    batches: Sequence[SizeRange] = BATCH_RANGES,
    plan: bool = True,
) -> tuple[OptimizationProfile, ...]:
    """Return the profiles of a graph, in order of batch size.

    Args:
        graph: one of `tokenfold.bundle.manifest.GRAPHS`.
        plan: whether the plan is an input, rather than fixed.
    """
    sizes = _dynamic_sizes(manifest, graph)
    counts = _plan_counts(manifest) if plan and takes_plan(graph) else ()
    return tuple(OptimizationProfile(batch=batch, sizes=sizes, plan=counts) for batch in batches)


def takes_plan(graph: str) -> bool:
    """Whether a graph has an input `plan`."""
    return graph in (MODEL, IMAGE, JOINT)


def _dynamic_sizes(manifest: Manifest, graph: str) -> dict[str, tuple[SizeRange, ...]]:
    if graph in (MODEL, IMAGE, VISION):
        return {"image": _image_sides(manifest)}
    text = (_text_tokens(manifest),)
    sizes: dict[str, tuple[SizeRange, ...]] = {"input_ids": text, "text_size": text}
    if graph == JOINT:
        sizes["image_tokens"] = (_image_tokens(manifest),)
    else:
        assert graph == TEXT
    return sizes


def _image_sides(manifest: Manifest) -> tuple[SizeRange, ...]:
    """Return the ranges of image height and width, in pixels."""
    preprocess = manifest.preprocess
    if preprocess.resize != "bounded":
        return tuple(map(SizeRange.fixed, preprocess.size))
    assert preprocess.multiple is not None
    assert preprocess.longest is not None
    longest = preprocess.longest // preprocess.multiple * preprocess.multiple
    return tuple(
        SizeRange(min=preprocess.multiple, opt=min(side, longest), max=longest)
        for side in preprocess.size
    )


def _image_tokens(manifest: Manifest) -> SizeRange:
    """Return the range of an image's number of tokens in the joint graph."""
    workload, preprocess = manifest.workload, manifest.preprocess
    assert isinstance(workload, PairWorkload)
    tokens = workload.image
    if preprocess.resize != "bounded":
        return SizeRange.fixed(tokens)
    assert preprocess.shorter_side is not None
    assert preprocess.longest is not None
    # One token is the class token; the others are patches.
    max_area = preprocess.shorter_side * preprocess.longest
    max_tokens = 1 + ceil((tokens - 1) * max_area / prod(preprocess.size))
    return SizeRange(min=2, opt=tokens, max=max(tokens, max_tokens))


def _text_tokens(manifest: Manifest) -> SizeRange:
    """Return the range of a text's number of tokens."""
    assert manifest.text is not None
    max_tokens = manifest.text.most_tokens
    min_tokens = 1 if manifest.text.padding is None else max_tokens
    return SizeRange(min=min_tokens, opt=max_tokens, max=max_tokens)


def _plan_counts(manifest: Manifest) -> tuple[SizeRange, ...]:
    """Return the range of each count of a plan.

    A larger count than the number of tokens removes no more tokens, so that number is the maximum.
    """
    workload = manifest.workload
    tokens = workload.tokens
    if isinstance(workload, PairWorkload):
        tokens = _image_tokens(manifest).max + workload.most_text
    default_plan = manifest.levels[manifest.default_level].plan
    max_count = max(tokens, *default_plan)
    return tuple(SizeRange(min=0, opt=count, max=max_count) for count in default_plan)
