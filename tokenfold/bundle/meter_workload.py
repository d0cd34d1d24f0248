"""The workload of METER, whose text and image tokens are separate streams."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from tokenfold.bundle.pair_workload import PairWorkload, pumer_flops
from tokenfold.bundle.workload import Plan, PlanError, Shape, bipartite_flops, clamp


class MeterWorkload(PairWorkload):
    """METER: a stream of text tokens and one of image tokens, each behind its own tower.

    Attributes:
        form: `parallel` if the image layer of a step attends to the text before the text layer,
            `sequential` if after it.
        dim, mlp_dim, metric_dim: widths of a token, of the MLPs, of the matcher's metric.
        vision_widths: tokens before the first layer of the image tower and after each layer.
        text_depth: number of layers of the text tower.
        stem: multiply-accumulates of the patch embedding, per token except the class token.
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
                "the method tome does not fit METER, whose text and image tokens are separate "
                "streams: use none or pumer; --tower reduces the image tower with ToMe"
            )
        if self.vision_widths[-1] != self.image:
            raise ValueError(
                f"the image tower returns {self.vision_widths[-1]} tokens, not {self.image}"
            )
        return self

    def sized(self, *, text: int | None = None, image: int | None = None) -> Self:
        """Return the workload of the same network for a text or an image of another length.

        Raises:
            PlanError: the network does not take this length, or its image tower reduces, so that
                the number of tokens does not determine the size of the image.
        """
        other = super().sized(text=text, image=image)
        if other.image == self.image:
            return other
        if self.vision_widths[0] != self.image:
            raise PlanError(
                "the number of image tokens is fixed in a network whose image tower reduces"
            )
        widths = (other.image,) * len(self.vision_widths)
        return other.model_copy(update={"vision_widths": widths})

    @property
    def plan_length(self) -> int:
        return 3 * self.depth

    def widths(self, plan: Sequence[int]) -> list[int]:
        """Return the token counts after the towers and after each layer with counts."""
        self.check(plan)
        return [text + image for text, image in self.streams(plan)]

    def flops(self, plan: Sequence[int]) -> int:
        self.check(plan)
        total = self._towers + (self.text + self.image) * self.dim**2 + self.head
        streams = self.streams(plan)
        for step, ((text, image), (text_after, image_after)) in enumerate(
            itertools.pairwise(streams)
        ):
            attended_text = text_after if self.form == "sequential" else text
            total += self._attention(text, text) + self._attention(text, image)
            total += self._attention(image_after, image_after)
            total += self._attention(image_after, attended_text)
            total += 2 * (text_after + image_after) * self.dim * self.mlp_dim
            counts = plan[3 * step : 3 * step + 3]
            if any(counts):
                total += text * image * self.dim  # importance: text-to-image attention
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
        """Return the multiply-accumulates of one attention layer with its projections."""
        return 2 * (queries + keys) * self.dim**2 + 2 * queries * keys * self.dim

    def ladder(self, shape: Shape) -> Iterator[Plan]:
        return self._scaled(shape) if self.method == "pumer" else iter([self.unreduced])


def even_widths(tokens: int, r: int, layers: int) -> list[int]:
    """Return token counts before the first layer and after each, if each layer removes r tokens."""
    counts = [tokens]
    for _ in range(layers):
        counts.append(counts[-1] - clamp(r, counts[-1], 1))
    return counts
