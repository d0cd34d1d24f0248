"""Layers in which a text and an image attend to each other, each in a stream of its own (METER)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tokenfold.models.operators import Count, Operators, Tokens
from tokenfold.models.post_norm import PostAttention, PostMlp
from tokenfold.models.reduction.pumer import PuMer

Form = Literal["parallel", "sequential"]
"""Whether the image layer sees the text as it came (METER), or what the text layer made of it
(PuMer's METER)."""

FOREMOST = 2.0
"""An importance above all: attention is at most 1."""


class Attended(NamedTuple):
    """A stream behind both attentions of its layer, and what the matchers want of them.

    Attributes:
        x: (B, Q, D).
        keys: (B, Q, D) of the self-attention.
        queries: (B, Q, D), and cross_keys: (B, N, D), of the cross-attention.
    """

    x: Tensor
    keys: Tensor
    queries: Tensor
    cross_keys: Tensor


class CrossLayer(nn.Module):
    """Self-attention, attention to the other stream, MLP."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.self_attn = PostAttention(dim, heads, eps)
        self.cross_attn = PostAttention(dim, heads, eps)
        self.mlp = PostMlp(dim, hidden, eps)

    def attend(self, own: Tokens, other: Tokens, run: Operators) -> Attended:
        """Both attentions."""
        x, _, keys = self.self_attn(own.x, own.x, own.size, run)
        x, queries, cross_keys = self.cross_attn(x, other.x, other.size, run)
        return Attended(x, keys, queries, cross_keys)


class CrossPair(nn.Module):
    """A text layer and an image layer.

    PuMer reduces both streams in the text layer, between its attentions and its MLP: the text by
    the keys of its self-attention, the image by the keys that the text's queries met, and by how
    much they attended to each. The image layer runs on what is left of the image.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, eps: float, *, form: Form, protect_class: bool
    ) -> None:
        """Sizes of both layers.

        Args:
            form: what the image layer sees of the text.
            protect_class: whether the first image token, the class token, always ranks first.
        """
        super().__init__()
        self.heads = heads
        self.form = form
        self.protect_class = protect_class
        self.text = CrossLayer(dim, heads, hidden, eps)
        self.image = CrossLayer(dim, heads, hidden, eps)

    def forward(
        self,
        text: Tokens,
        image: Tokens,
        run: Operators,
        matcher: PuMer | None = None,
        counts: tuple[Count, ...] = (0, 0, 0),
    ) -> tuple[Tokens, Tokens]:
        """One step of both streams.

        Args:
            matcher: None in a layer that never reduces.
            counts: image tokens to prune, image tokens to merge, text tokens to merge.
        """
        attended = self.text.attend(text, image, run)
        words = text._replace(x=attended.x)
        if matcher is not None:
            prune, merge, among_words = counts
            importance = self._importance(attended, text, image, run)
            words = run.reduce(words, attended.keys, self.heads, matcher.merge, among_words)
            of_image = (prune, merge, 0)
            image = run.reduce(
                image, attended.cross_keys, self.heads, matcher, of_image, importance
            )
        words = words._replace(x=self.text.mlp(words.x))
        seen = words if self.form == "sequential" else text
        patches = self.image.mlp(self.image.attend(image, seen, run).x)
        return words, image._replace(x=patches)

    def _importance(
        self, attended: Attended, text: Tokens, image: Tokens, run: Operators
    ) -> Tensor:
        """(B, N) of the image tokens."""
        queries = attended.queries
        importance = run.importance(
            queries, attended.cross_keys, image.size, text.size, queries.shape[1], self.heads
        )
        if not self.protect_class:
            return importance
        first = torch.full_like(importance[:, :1], FOREMOST)
        return torch.cat([first, importance[:, 1:]], dim=1)
