"""What an image's tokens cost: exact widths and FLOPs of a plan. No torch in here.

FLOPs are multiply-accumulates of every matrix product, the convention of the papers (DeiT-S is
4.6 G). A *plan* is flat: the counts of each layer one after the other.
"""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["none", "tome", "pitome"]
Shape = Literal["constant", "increasing", "decreasing"]
Plan = tuple[int, ...]


class PlanError(ValueError):
    """A plan or reduction that no network of this size can take."""


def clamp(r: int, tokens: int, protected: int) -> int:
    """The tokens that a layer really merges when asked for r: at most half of the unprotected."""
    return max(0, min(r, (tokens - protected) // 2))


class BaseWorkload(BaseModel, ABC):
    """What decides the FLOPs of one input of a network with reducing layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def plan_length(self) -> int:
        """Counts in a plan."""

    @property
    def unreduced(self) -> Plan:
        """The plan that removes nothing."""
        return (0,) * self.plan_length

    @abstractmethod
    def widths(self, plan: Sequence[int]) -> list[int]:
        """Token counts before the first layer and after each, text and image together.

        Raises:
            PlanError: the plan has another length than the network's, or a negative count.
        """

    @abstractmethod
    def flops(self, plan: Sequence[int]) -> int:
        """Multiply-accumulates of one input: every matrix product, matching included.

        Raises:
            PlanError: as `widths`.
        """

    @abstractmethod
    def ladder(self, shape: Shape) -> Iterator[Plan]:
        """Plans from the least reduced to the most, by which a requested reduction is met."""

    def check(self, plan: Sequence[int]) -> None:
        """Whether a plan is of this network.

        Raises:
            PlanError: it has another length, or a negative count.
        """
        if len(plan) != self.plan_length:
            raise PlanError(f"a plan here has {self.plan_length} counts, not {len(plan)}")
        if any(r < 0 for r in plan):
            raise PlanError(f"a plan's counts are 0 or more, not {min(plan)}")


class ImageWorkload(BaseWorkload):
    """One stream of image tokens.

    Attributes:
        method: the matcher, whose similarity matrix costs a matrix product too.
        tokens: tokens that enter the first layer, protected ones included.
        protected: leading tokens that are never merged away (class, distillation).
        depth, dim: layers, and the width of a token.
        mlp_dim: hidden width of the MLP; mlp_products: matrix products in it (2, or 3 when gated).
        metric_dim: width of the matcher's metric (one attention head).
        stem: multiply-accumulates before the first layer (patch embedding).
        head: multiply-accumulates after the last one, and head_per_token: those for each token that
            is left (attention pooling).
    """

    method: Method
    tokens: int = Field(ge=1)
    protected: int = Field(ge=0)
    depth: int = Field(ge=1)
    dim: int = Field(ge=1)
    mlp_dim: int = Field(ge=1)
    mlp_products: int = Field(default=2, ge=2, le=3)
    metric_dim: int = Field(ge=1)
    stem: int = Field(ge=0)
    head: int = Field(ge=0)
    head_per_token: int = Field(default=0, ge=0)

    @property
    def plan_length(self) -> int:
        return self.depth

    def widths(self, plan: Sequence[int]) -> list[int]:
        self.check(plan)
        counts = [self.tokens]
        for r in plan:
            counts.append(counts[-1] - clamp(r, counts[-1], self.protected))
        return counts

    def flops(self, plan: Sequence[int]) -> int:
        # A layer attends over its incoming tokens, reduces, and runs its MLP on what is left.
        counts = self.widths(plan)
        d = self.dim
        total = self.stem + self.head + counts[-1] * self.head_per_token
        for before, after in itertools.pairwise(counts):
            total += 4 * before * d * d + 2 * before * before * d
            total += self.mlp_products * after * d * self.mlp_dim
            if after < before:
                total += self._matching_flops(before)
        return total

    def _matching_flops(self, tokens: int) -> int:
        if self.method == "tome":
            return bipartite_flops(tokens, self.metric_dim)
        return tokens * tokens * self.metric_dim

    def ladder(self, shape: Shape) -> Iterator[Plan]:
        """Tokens go one at a time, by Sainte-Lague's divisor rule on the weights of the shape.

        Each plan contains the one before it, which makes the FLOPs monotone, and steps are single
        tokens, far finer than stepping every layer at once.
        """
        yield self.unreduced
        if self.method == "none":
            return
        raw = [0] * self.depth
        # (votes already won) / weight decides who gets the next token; ties go to the first layer.
        heap = [(1.0 / w, i, w) for i, w in enumerate(weights(shape, self.depth)) if w > 0]
        heapq.heapify(heap)
        while heap:
            _, layer, weight = heap[0]
            raw[layer] += 1
            counts = self.widths(raw)
            if counts[layer] - counts[layer + 1] < raw[layer]:
                # This layer is full, and only gets fuller as earlier layers take more.
                raw[layer] -= 1
                heapq.heappop(heap)
                continue
            heapq.heapreplace(heap, ((2 * raw[layer] + 1) / weight, layer, weight))
            yield tuple(a - b for a, b in itertools.pairwise(counts))


class Workload(ImageWorkload):
    """An image classifier."""

    kind: Literal["image"] = "image"


class TextWorkload(BaseModel):
    """A text tower that nothing reduces: what decides the FLOPs of one text.

    Attributes:
        depth, dim, mlp_dim: layers, width of a token, hidden width of the MLP.
        head: multiply-accumulates after the last layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: int = Field(ge=1)
    dim: int = Field(ge=1)
    mlp_dim: int = Field(ge=1)
    head: int = Field(ge=0)

    def flops(self, tokens: int) -> int:
        """Multiply-accumulates of one text of so many tokens, padding that is attended to included.

        Raises:
            PlanError: there is no token.
        """
        if tokens < 1:
            raise PlanError(f"a text of {tokens} tokens")
        d = self.dim
        layer = tokens * (4 * d * d + 2 * d * self.mlp_dim) + 2 * tokens * tokens * d
        return self.depth * layer + self.head


class DualWorkload(ImageWorkload):
    """A dual encoder: its plans and FLOPs are of one image; texts have their own.

    Attributes:
        text: the text tower.
    """

    kind: Literal["dual"] = "dual"
    text: TextWorkload

    def text_flops(self, tokens: int) -> int:
        """Multiply-accumulates of one text, see `TextWorkload.flops`."""
        return self.text.flops(tokens)


def bipartite_flops(tokens: int, metric_dim: int) -> int:
    """Multiply-accumulates of the similarities between even and odd tokens."""
    return ((tokens + 1) // 2) * (tokens // 2) * metric_dim


def weights(shape: Shape, layers: int) -> list[float]:
    """How much of a reduction each layer takes: 1 on average."""
    rising = [2.0 * i / (layers - 1) for i in range(layers)] if layers > 1 else [1.0] * layers
    if shape == "increasing":
        return rising
    if shape == "decreasing":
        return rising[::-1]
    return [1.0] * layers
