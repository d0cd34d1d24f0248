"""Workloads: exact token counts and FLOPs of an image under a plan.

FLOPs are multiply-accumulates of every matrix product, the convention of the papers (DeiT-S has
4.6 G). A *plan* is flat: the counts of all layers in order.
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
    """A plan or reduction that does not fit the network."""


def clamp(r: int, tokens: int, protected: int) -> int:
    """Return the tokens that a layer removes for a count of r: at most half of the unprotected."""
    return max(0, min(r, (tokens - protected) // 2))


class BaseWorkload(BaseModel, ABC):
    """Sizes of a network with reducing layers, which determine the FLOPs of one input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def plan_length(self) -> int:
        """Number of counts in a plan."""

    @property
    def unreduced(self) -> Plan:
        """Plan that removes nothing."""
        return (0,) * self.plan_length

    @abstractmethod
    def widths(self, plan: Sequence[int]) -> list[int]:
        """Return the token counts before the first layer and after each layer.

        The tokens of text and image are added.

        Raises:
            PlanError: the plan does not fit the network, see `check`.
        """

    @abstractmethod
    def flops(self, plan: Sequence[int]) -> int:
        """Return the multiply-accumulates of one input, including those of matching.

        Raises:
            PlanError: the plan does not fit the network, see `check`.
        """

    @abstractmethod
    def ladder(self, shape: Shape) -> Iterator[Plan]:
        """Yield plans from the least to the most reduced, from which a reduction is chosen."""

    def check(self, plan: Sequence[int]) -> None:
        """Check that a plan has the network's length and no negative count; raise PlanError
        otherwise.
        """
        if len(plan) != self.plan_length:
            raise PlanError(
                f"a plan of this network has {self.plan_length} counts, not {len(plan)}"
            )
        if any(r < 0 for r in plan):
            raise PlanError(f"the counts of a plan are 0 or more, not {min(plan)}")


class ImageWorkload(BaseWorkload):
    """One stream of image tokens.

    Attributes:
        method: the matcher, whose similarity matrix is a matrix product, too.
        tokens: tokens that enter the first layer, protected ones included.
        protected: leading tokens that are never merged away (class, distillation).
        depth, dim: number of layers, and width of a token.
        mlp_dim: hidden width of the MLP.
        mlp_products: matrix products in the MLP: 2, or 3 when it is gated.
        metric_dim: width of the matcher's metric (one attention head).
        stem: multiply-accumulates before the first layer (patch embedding).
        head: multiply-accumulates after the last layer.
        head_per_token: additional multiply-accumulates after the last layer for each token that is
            left (attention pooling).
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
        # A layer attends over its incoming tokens, reduces, and runs its MLP on the tokens left.
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
        """Yield plans that remove one token more each, chosen by Sainte-Lague's divisor rule.

        Each plan contains the one before it, which makes the FLOPs monotone. Steps of single tokens
        are much finer than steps of all layers at once.
        """
        yield self.unreduced
        if self.method == "none":
            return
        raw = [0] * self.depth
        # (tokens already removed) / weight decides on the next layer; ties go to the first layer.
        heap = [(1.0 / w, i, w) for i, w in enumerate(weights(shape, self.depth)) if w > 0]
        heapq.heapify(heap)
        while heap:
            _, layer, weight = heap[0]
            raw[layer] += 1
            counts = self.widths(raw)
            if counts[layer] - counts[layer + 1] < raw[layer]:
                # This layer cannot remove more, and even less once earlier layers remove more.
                raw[layer] -= 1
                heapq.heappop(heap)
                continue
            heapq.heapreplace(heap, ((2 * raw[layer] + 1) / weight, layer, weight))
            yield tuple(a - b for a, b in itertools.pairwise(counts))


class Workload(ImageWorkload):
    """An image classifier."""

    kind: Literal["image"] = "image"


class TextWorkload(BaseModel):
    """Sizes of an unreduced text tower, which determine the FLOPs of one text.

    Attributes:
        depth, dim, mlp_dim: number of layers, width of a token, hidden width of the MLP.
        head: multiply-accumulates after the last layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: int = Field(ge=1)
    dim: int = Field(ge=1)
    mlp_dim: int = Field(ge=1)
    head: int = Field(ge=0)

    def flops(self, tokens: int) -> int:
        """Return the multiply-accumulates of one text.

        Args:
            tokens: length of the text, including padding that the network attends to.

        Raises:
            PlanError: the length is below 1.
        """
        if tokens < 1:
            raise PlanError(f"the text has {tokens} tokens; it must have at least 1")
        d = self.dim
        layer = tokens * (4 * d * d + 2 * d * self.mlp_dim) + 2 * tokens * tokens * d
        return self.depth * layer + self.head


class DualWorkload(ImageWorkload):
    """A dual encoder: plans and FLOPs are those of one image.

    Attributes:
        text: the text tower.
    """

    kind: Literal["dual"] = "dual"
    text: TextWorkload

    def text_flops(self, tokens: int) -> int:
        """Return the multiply-accumulates of one text, see `TextWorkload.flops`."""
        return self.text.flops(tokens)


def bipartite_flops(tokens: int, metric_dim: int) -> int:
    """Return the multiply-accumulates of the similarities between even and odd tokens."""
    return ((tokens + 1) // 2) * (tokens // 2) * metric_dim


def weights(shape: Shape, layers: int) -> list[float]:
    """Return the share of a reduction that each layer takes: 1 on average."""
    rising = [2.0 * i / (layers - 1) for i in range(layers)] if layers > 1 else [1.0] * layers
    if shape == "increasing":
        return rising
    if shape == "decreasing":
        return rising[::-1]
    return [1.0] * layers
