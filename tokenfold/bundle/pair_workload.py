"""What an image with a text costs; see `workload`. No torch in here.

Of a plan each layer has one count where tokens merge, and three (prune, merge, text) where PuMer
reduces.
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
"""Shares of a layer's tokens: image tokens to prune, then to merge, and text tokens to merge."""

# Steps in which PuMer's rates grow from nothing to all that can go. A rate that is much smaller
# than the largest stops short of that: to reach it the steps would be too coarse for the others.
_STEPS = 512
_MOST = 0.95
_APART = 32


def pumer_widths(text: int, image: int, counts: Sequence[int]) -> tuple[int, int]:
    """Text and image tokens that are left when asked for counts (prune, merge, text).

    At least one image token stays; of what pruning leaves, and of the text, at most half of all
    but the first can merge (PuMer, section 3).
    """
    prune, merge, words = counts
    keep = max(image - max(prune, 0), min(image, 1))
    return text - clamp(words, text, 1), keep - clamp(merge, keep, 1)


class PairWorkload(BaseWorkload):
    """An image and a text.

    Attributes:
        method: `tome` merges both modalities jointly, `pumer` prunes and merges.
        text: tokens of the text, class token and separator included.
        image: tokens of the image, class token included.
        most_text: tokens of the longest text.
        layers: those that PuMer reduces, counted from 0.
        rates: of a PuMer reduction; a requested one scales them together.
        depth: layers with counts in the plan.
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
            raise ValueError(f"a text of {self.text} tokens is longer than {self.most_text}")
        if any(not 0 <= layer < self.depth for layer in self.layers):
            raise ValueError(f"reducing layers are 0 to {self.depth - 1}, not {self.layers}")
        if self.method == "pumer" and (not self.layers or not any(self.rates)):
            raise ValueError("PuMer needs layers that reduce, and a rate above 0")
        if any(not 0 <= rate <= 1 for rate in self.rates):
            raise ValueError(f"rates are 0 to 1, not {self.rates}")
        return self

    def sized(self, *, text: int | None = None, image: int | None = None) -> Self:
        """The same network on a text or an image of another length.

        Raises:
            PlanError: it takes no text or image of such a length.
        """
        text = self.text if text is None else text
        image = self.image if image is None else image
        # A copy is not validated; this is asked for every new length.
        if not 1 <= text <= self.most_text:
            raise PlanError(f"a text of {text} tokens, where it has at most {self.most_text}")
        if image < 1:
            raise PlanError(f"an image of {image} tokens")
        return self.model_copy(update={"text": text, "image": image})

    @property
    def tokens(self) -> int:
        """Tokens before the first layer."""
        return self.text + self.image

    @property
    @abstractmethod
    def embedding(self) -> int:
        """Of the FLOPs those of the image alone, which several texts can share."""

    def streams(self, plan: Sequence[int]) -> list[tuple[int, int]]:
        """(text, image) tokens before the first layer with counts and after each, for PuMer."""
        found = [(self.text, self.image)]
        for layer in range(self.depth):
            found.append(pumer_widths(*found[-1], plan[3 * layer : 3 * layer + 3]))
        return found

    def plan_at(self, rates: Rates, shape: Shape = "constant") -> Plan:
        """The plan of fixed rates: each reducing layer loses such shares of what enters it.

        Counts are rounded half to even, of the tokens before pruning, as published.
        """
        given = dict(zip(self.layers, weights(shape, len(self.layers)), strict=True))
        text, image = self.text, self.image
        plan: list[int] = []
        for layer in range(self.depth):
            share = min(given.get(layer, 0.0), 1.0 / max(*rates, 1e-9))
            asked = (
                round(rates[0] * share * image),
                round(rates[1] * share * image),
                round(rates[2] * share * text),
            )
            text_after, image_after = pumer_widths(text, image, asked)
            kept = max(image - asked[0], 1)
            plan += [image - kept, kept - image_after, text - text_after]
            text, image = text_after, image_after
        return tuple(plan)

    def _scaled(self, shape: Shape) -> Iterator[Plan]:
        """PuMer's rates, scaled together from nothing to all that can go."""
        least = max(min(rate for rate in self.rates if rate > 0), max(self.rates) / _APART)
        most = _MOST / least
        last: Plan | None = None
        for step in range(_STEPS + 1):
            # Quadratic: small reductions have the finer steps.
            scale = most * (step / _STEPS) ** 2
            prune, merge, text = (min(rate * scale, _MOST) for rate in self.rates)
            plan = self.plan_at((prune, merge, text), shape)
            if plan != last:  # half of them round to the same counts
                yield plan
            last = plan


class ViltWorkload(PairWorkload):
    """One stream of text and image tokens (ViLT).

    Attributes:
        dim, mlp_dim, metric_dim: widths of a token, of the MLP, of the matcher's metric.
        stem: multiply-accumulates of the patch embedding, for each image token but the class.
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
        """The same stream for a method that does not tell text from image."""
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
        for layer, ((text, image), (words, patches)) in enumerate(itertools.pairwise(streams)):
            before, after = text + image, words + patches
            total += 4 * before * d * d + 2 * before * before * d + 2 * after * d * self.mlp_dim
            counts = plan[3 * layer : 3 * layer + 3]
            if any(counts):
                total += self._matching_flops(text, image, counts)
        return total

    def _matching_flops(self, text: int, image: int, counts: Sequence[int]) -> int:
        again = text * (text + image) * self.dim  # the attention of the text, once more
        return again + pumer_flops(text, image, counts, self.metric_dim)

    def ladder(self, shape: Shape) -> Iterator[Plan]:
        return self._scaled(shape) if self.method == "pumer" else self._joint.ladder(shape)


class MeterWorkload(PairWorkload):
    """A stream of text and one of image tokens, behind a tower of their own each (METER).

    Attributes:
        form: whether the image layer of a step sees the text before or behind the text layer.
        dim, mlp_dim, metric_dim: widths of a token, of the MLPs, of the matcher's metric.
        vision_widths: tokens before the first layer of the image tower and after each.
        text_depth: layers of the text tower.
        stem: multiply-accumulates of the patch embedding, for each token but the class.
        head: multiply-accumulates after the last layer.
    """

    kind: Literal["meter"] = "meter"
    form: Literal["parallel", "sequential"]
    dim: int = Field(ge=1)
    mlp_dim: int = Field(ge=1)
    metric_dim: int = Field(ge=1)
    vision_widths: tuple[int, ...] = Field(min_length=2)
    text_depth: int = Field(ge=1)
    stem: int = Field(ge=0)
    head: int = Field(ge=0)

    @model_validator(mode="after")
    def _two_streams(self) -> Self:
        if self.method == "tome":
            raise ValueError(
                "METER's text and image are no one stream that ToMe could merge: choose none or "
                "pumer, and for ToMe in the image tower so many tokens in each of its layers"
            )
        if self.vision_widths[-1] != self.image:
            raise ValueError(
                f"the image tower gives {self.vision_widths[-1]} tokens, not {self.image}"
            )
        return self

    def sized(self, *, text: int | None = None, image: int | None = None) -> Self:
        """The same network on a text or an image of another length.

        Raises:
            PlanError: as of every such network; or the image tower reduces, so that its tokens do
                not say how many it took.
        """
        other = super().sized(text=text, image=image)
        if other.image == self.image:
            return other
        if self.vision_widths[0] != self.image:
            raise PlanError("the length of an image is fixed where ToMe reduces its tower")
        widths = (other.image,) * len(self.vision_widths)
        return other.model_copy(update={"vision_widths": widths})

    @property
    def plan_length(self) -> int:
        return 3 * self.depth

    def widths(self, plan: Sequence[int]) -> list[int]:
        """As of every workload; the towers are before the first layer with counts."""
        self.check(plan)
        return [text + image for text, image in self.streams(plan)]

    def flops(self, plan: Sequence[int]) -> int:
        self.check(plan)
        total = self._towers + (self.text + self.image) * self.dim**2 + self.head
        streams = self.streams(plan)
        for step, ((text, image), (words, patches)) in enumerate(itertools.pairwise(streams)):
            seen = words if self.form == "sequential" else text
            total += self._attention(text, text) + self._attention(text, image)
            total += self._attention(patches, patches) + self._attention(patches, seen)
            total += 2 * (words + patches) * self.dim * self.mlp_dim
            counts = plan[3 * step : 3 * step + 3]
            if any(counts):
                total += text * image * self.dim  # the text's attention to the image, once more
                total += pumer_flops(text, image, counts, self.metric_dim)
        return total

    @property
    def embedding(self) -> int:
        total = self.stem * (self.vision_widths[0] - 1)
        for before, after in itertools.pairwise(self.vision_widths):
            total += self._attention(before, before) + 2 * after * self.dim * self.mlp_dim
            if after < before:
                total += bipartite_flops(before, self.metric_dim)
        return total

    @property
    def _towers(self) -> int:
        layer = self._attention(self.text, self.text) + 2 * self.text * self.dim * self.mlp_dim
        return self.embedding + self.text_depth * layer

    def _attention(self, queries: int, keys: int) -> int:
        """Of one layer, its projections included."""
        return 2 * (queries + keys) * self.dim**2 + 2 * queries * keys * self.dim

    def ladder(self, shape: Shape) -> Iterator[Plan]:
        return self._scaled(shape) if self.method == "pumer" else iter([self.unreduced])


def even_widths(tokens: int, r: int, layers: int) -> list[int]:
    """Token counts before the first layer and after each that merges r, the class token kept."""
    counts = [tokens]
    for _ in range(layers):
        counts.append(counts[-1] - clamp(r, counts[-1], 1))
    return counts


def pumer_flops(text: int, image: int, counts: Sequence[int], metric_dim: int) -> int:
    """Multiply-accumulates of the similarities by which both modalities merge."""
    prune, merge, words = counts
    keep = max(image - prune, 1)
    total = bipartite_flops(keep, metric_dim) if clamp(merge, keep, 1) else 0
    return total + (bipartite_flops(text, metric_dim) if clamp(words, text, 1) else 0)
