"""For which sizes an engine is built: batches, images, texts and plans, of each graph of a bundle.

Of a batch there are a few ranges, since what is fastest for one image is not for a hundred. All
else varies within each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Self

from tokenfold.bundle.document import Document
from tokenfold.bundle.manifest import IMAGE, JOINT, MODEL, TEXT, VISION, Manifest
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.runtime.cuda.buckets import MOST


class Range(Document):
    """A size: the least, the one to be fast at, and the most."""

    least: int
    usual: int
    most: int

    @classmethod
    def of(cls, size: int) -> Self:
        """One that does not vary."""
        return cls(least=size, usual=size, most=size)


BATCHES = (
    Range.of(1),
    Range(least=2, usual=8, most=32),
    Range(least=33, usual=MOST, most=MOST),
)
"""Items of a run."""


class Profile(Document):
    """One range of batches.

    Attributes:
        batch: the first size of every input that varies at all.
        sizes: the others that may vary, of each input in their order.
        plan: of each count; empty where the graph has no plan, or a fixed one.
    """

    batch: Range
    sizes: dict[str, tuple[Range, ...]]
    plan: tuple[Range, ...] = ()

    def shape(self, name: str, shape: Sequence[int]) -> tuple[Range, ...]:
        """The range of each size of an input.

        Args:
            shape: with -1 for what varies.
        """
        free = iter((self.batch, *self.sizes.get(name, ())))
        return tuple(next(free) if size < 0 else Range.of(size) for size in shape)


def profiles(
    manifest: Manifest, graph: str, *, batches: Sequence[Range] = BATCHES, plan: bool = True
) -> tuple[Profile, ...]:
    """The profiles of a graph, by rising batches.

    Args:
        graph: one of `tokenfold.bundle.manifest.GRAPHS`.
        plan: whether a plan is an input, rather than fixed.
    """
    sizes = _sizes(manifest, graph)
    counts = _plan(manifest) if plan and takes_plan(graph) else ()
    return tuple(Profile(batch=batch, sizes=sizes, plan=counts) for batch in batches)


def takes_plan(graph: str) -> bool:
    """Whether a graph has an input `plan`."""
    return graph in (MODEL, IMAGE, JOINT)


def _sizes(manifest: Manifest, graph: str) -> dict[str, tuple[Range, ...]]:
    if graph in (MODEL, IMAGE, VISION):
        return {"image": _sides(manifest)}
    text = (_text(manifest),)
    found: dict[str, tuple[Range, ...]] = {"input_ids": text, "text_size": text}
    if graph == JOINT:
        found["image_tokens"] = (_image(manifest),)
    else:
        assert graph == TEXT
    return found


def _sides(manifest: Manifest) -> tuple[Range, ...]:
    """Height and width of images in pixels."""
    ready = manifest.preprocess
    if ready.resize != "bounded":
        return tuple(map(Range.of, ready.size))
    assert ready.multiple is not None
    assert ready.longest is not None
    longest = ready.longest // ready.multiple * ready.multiple
    return tuple(
        Range(least=ready.multiple, usual=min(side, longest), most=longest) for side in ready.size
    )


def _image(manifest: Manifest) -> Range:
    """Tokens of an image, where it meets a text."""
    workload, ready = manifest.workload, manifest.preprocess
    assert isinstance(workload, PairWorkload)
    usual = workload.image
    if ready.resize != "bounded":
        return Range.of(usual)
    assert ready.shorter_side is not None
    assert ready.longest is not None
    # One of its tokens is no patch.
    most = 1 + ceil((usual - 1) * ready.shorter_side * ready.longest / prod(ready.size))
    return Range(least=2, usual=usual, most=max(usual, most))


def _text(manifest: Manifest) -> Range:
    """Tokens of a text."""
    assert manifest.text is not None
    most = manifest.text.most_tokens
    return Range(least=1 if manifest.text.padding is None else most, usual=most, most=most)


def _plan(manifest: Manifest) -> tuple[Range, ...]:
    """Counts: what there are no tokens for is not removed, so tokens are the limit."""
    workload = manifest.workload
    tokens = workload.tokens
    if isinstance(workload, PairWorkload):
        tokens = _image(manifest).most + workload.most_text
    usual = manifest.levels[manifest.default_level].plan
    most = max(tokens, *usual)
    return tuple(Range(least=0, usual=count, most=most) for count in usual)
