"""Workloads of image-text networks: the base class, and ViLT; see `tokenfold.bundle.workload`.

A plan has one count per layer for ToMe, and three counts per layer (prune, merge, text) for PuMer.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from tokenfold.bundle.workload import (
    BaseWorkload,
    Plan,
    PlanError,
    Shape,
    Workload,
    bipartite_flops,
    clamp,
    weights,
)

PairMethod = Literal["none", "tome", "pumer"]
Rates = tuple[float, float, float]
"""Fractions of a layer's tokens: of the image to prune and to merge, and of the text to merge."""

# PuMer's rates grow from 0 to _MAX_RATE in this number of steps. A rate that is more than
# _MAX_RATIO times smaller than the largest stays below _MAX_RATE, because growing that far would
# make the steps too coarse for the other rates.
_STEPS = 512
_MAX_RATE = 0.95
_MAX_RATIO = 32


def pumer_widths(text: int, image: int, counts: Sequence[int]) -> tuple[int, int]:
    """Return the text and image tokens left after a layer with counts (prune, merge, text).

    At least one image token stays. Merging removes at most half of the text tokens, and of the
    image tokens that pruning leaves, not counting the first of each (PuMer, section 3).
    """
    prune, merge, words = counts
    keep = max(image - max(prune, 0), min(image, 1))
    return text - clamp(words, text, 1), keep - clamp(merge, keep, 1)


class PairWorkload(BaseWorkload):
    """An image with a text.

    Attributes:
        method: `tome` merges both modalities jointly, `pumer` prunes and merges.
        text: tokens of the text, class token and separator included.
        image: tokens of the image, class token included.
        most_text: tokens of the longest text.
        layers: layers that PuMer reduces, counted from 0.
        rates: PuMer's rates, which a requested reduction scales together.
        depth: number of layers with counts in the plan.
    """

    method: PairMethod
    text: int = Field(ge=1)
    image: int = Field(ge=1)
    most_text: int = Field(ge=1)
    layers: tuple[int, ...] = ()
    rates: Rates = (0.1, 0.3, 0.2)
    depth: int = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.text > self.most_text:
            raise ValueError(f"the text has {self.text} tokens; the maximum is {self.most_text}")
        if any(not 0 <= layer < self.depth for layer in self.layers):
            raise ValueError(f"reducing layers are 0 to {self.depth - 1}, not {self.layers}")
        if self.method == "pumer" and (not self.layers or not any(self.rates)):
            raise ValueError("PuMer needs at least one reducing layer and a rate above 0")
        if any(not 0 <= rate <= 1 for rate in self.rates):
            raise ValueError(f"the rates are {self.rates}; they must be between 0 and 1")
        return self

    def sized(self, *, text: int | None = None, image: int | None = None) -> Self:
        """Return the workload of the same network for a text or an image of another length.

        Raises:
            PlanError: the network does not take a text or image of this length.
        """
        text = self.text if text is None else text
        image = self.image if image is None else image
        # A copy is not validated, because the service makes one for every new length.
        if not 1 <= text <= self.most_text:
            raise PlanError(
                f"the text has {text} tokens; it must have at least 1 and at most {self.most_text}"
            )
        if image < 1:
            raise PlanError(f"the image has {image} tokens; it must have at least 1")
        return self.model_copy(update={"text": text, "image": image})

    @property
    def tokens(self) -> int:
        """Tokens before the first layer."""
        return self.text + self.image

    @property
    @abstractmethod
    def embedding(self) -> int:
        """FLOPs of embedding the image, which several texts can share."""

    def streams(self, plan: Sequence[int]) -> list[tuple[int, int]]:
        """Return PuMer's (text, image) tokens before the first layer with counts and after each."""
        streams = [(self.text, self.image)]
        for layer in range(self.depth):
            streams.append(pumer_widths(*streams[-1], plan[3 * layer : 3 * layer + 3]))
        return streams

    def plan_at(self, rates: Rates, shape: Shape = "constant") -> Plan:
        """Return the plan in which each reducing layer loses fixed fractions of its tokens.

        As published, fractions are of the tokens before pruning, and counts are rounded half to
        even.
        """
        shares = dict(zip(self.layers, weights(shape, len(self.layers)), strict=True))
        text, image = self.text, self.image
        plan: list[int] = []
        for layer in range(self.depth):
            share = min(shares.get(layer, 0.0), 1.0 / max(*rates, 1e-9))
            counts = (
                round(rates[0] * share * image),
                round(rates[1] * share * image),
                round(rates[2] * share * text),
            )
            text_after, image_after = pumer_widths(text, image, counts)
            unpruned = max(image - counts[0], 1)
            plan += [image - unpruned, unpruned - image_after, text - text_after]
            text, image = text_after, image_after
        return tuple(plan)

    def _scaled(self, shape: Shape) -> Iterator[Plan]:
        """Yield the plans of PuMer's rates, scaled together from 0 to the most reduced plan."""
        smallest = max(min(rate for rate in self.rates if rate > 0), max(self.rates) / _MAX_RATIO)
        max_scale = _MAX_RATE / smallest
        previous: Plan | None = None
        for step in range(_STEPS + 1):
            # Quadratic, so that small reductions have finer steps.
            scale = max_scale * (step / _STEPS) ** 2
            prune, merge, text = (min(rate * scale, _MAX_RATE) for rate in self.rates)
            plan = self.plan_at((prune, merge, text), shape)
            if plan != previous:  # half of the steps round to the same counts
                yield plan
            previous = plan


class ViltWorkload(PairWorkload):
    """ViLT: one stream of text and image tokens.

    Attributes:
        dim, mlp_dim, metric_dim: widths of a token, of the MLP, of the matcher's metric.
        stem: multiply-accumulates of the patch embedding, per image token except the class token.
        head: multiply-accumulates after the last layer.
    """

    kind: Literal["vilt"] = "vilt"
    dim: int = Field(ge=1)
    mlp_dim: int = Field(ge=1)
    metric_dim: int = Field(ge=1)
    stem: int = Field(ge=0)
    head: int = Field(ge=0)

    @property
    def plan_length(self) -> int:
        return 3 * self.depth if self.method == "pumer" else self.depth

    @property
    def embedding(self) -> int:
        return self.stem * (self.image - 1)

    @property
    def _joint(self) -> Workload:
        """Workload of the same stream for a method that treats text and image tokens alike."""
        return Workload(
            method="none" if self.method == "none" else "tome",
            tokens=self.tokens,
            protected=1,
            depth=self.depth,
            dim=self.dim,
            mlp_dim=self.mlp_dim,
            metric_dim=self.metric_dim,
            stem=self.stem * (self.image - 1),
            head=self.head,
        )

    def widths(self, plan: Sequence[int]) -> list[int]:
        self.check(plan)
        if self.method != "pumer":
            return self._joint.widths(plan)
        return [text + image for text, image in self.streams(plan)]

    def flops(self, plan: Sequence[int]) -> int:
        self.check(plan)
        if self.method != "pumer":
            return self._joint.flops(plan)
        d = self.dim
        total = self.stem * (self.image - 1) + self.head
        streams = self.streams(plan)
        for layer, (entering, leaving) in enumerate(itertools.pairwise(streams)):
            (text, image), before, after = entering, sum(entering), sum(leaving)
            total += 4 * before * d * d + 2 * before * before * d + 2 * after * d * self.mlp_dim
            counts = plan[3 * layer : 3 * layer + 3]
            if any(counts):
                total += self._matching_flops(text, image, counts)
        return total

    def _matching_flops(self, text: int, image: int, counts: Sequence[int]) -> int:
        importance = text * (text + image) * self.dim  # attention of the text, computed again
        return importance + pumer_flops(text, image, counts, self.metric_dim)

    def ladder(self, shape: Shape) -> Iterator[Plan]:
        return self._scaled(shape) if self.method == "pumer" else self._joint.ladder(shape)


def pumer_flops(text: int, image: int, counts: Sequence[int], metric_dim: int) -> int:
    """Return the multiply-accumulates of the similarities by which both modalities merge."""
    prune, merge, words = counts
    keep = max(image - prune, 1)
    total = bipartite_flops(keep, metric_dim) if clamp(merge, keep, 1) else 0
    return total + (bipartite_flops(text, metric_dim) if clamp(words, text, 1) else 0)
