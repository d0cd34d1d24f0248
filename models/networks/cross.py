"""METER's cross-modal layers: a text stream and an image stream that attend to each other."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tokenfold.models.networks.operators import Count, Operators, Tokens
from tokenfold.models.networks.roberta import PostNormAttention, PostNormMlp
from tokenfold.models.reduction.pumer import PuMer

Form = Literal["parallel", "sequential"]
"""Text that the image layer attends to: the text layer's input (`parallel`, METER), or its output
(`sequential`, PuMer's METER)."""

TOP_IMPORTANCE = 2.0
"""An importance above any that attention gives, which is at most 1."""


class Attended(NamedTuple):
    """Output of both attentions of a layer, and the inputs of its matchers.

    Attributes:
        x: (B, Q, D).
        keys: (B, Q, D), keys of the self-attention.
        queries, cross_keys: (B, Q, D) and (B, N, D), queries and keys of the cross-attention.
    """

    x: Tensor
    keys: Tensor
    queries: Tensor
    cross_keys: Tensor


class CrossLayer(nn.Module):
    """Self-attention, cross-attention to the other stream, MLP."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.self_attn = PostNormAttention(dim, heads, eps)
        self.cross_attn = PostNormAttention(dim, heads, eps)
        self.mlp = PostNormMlp(dim, hidden, eps)

    def attend(self, stream: Tokens, other: Tokens, ops: Operators) -> Attended:
        """Run both attentions of a stream."""
        x, _, keys = self.self_attn(stream.x, stream.x, stream.size, ops)
        x, queries, cross_keys = self.cross_attn(x, other.x, other.size, ops)
        return Attended(x, keys, queries, cross_keys)


class CrossPair(nn.Module):
    """A text layer and an image layer.

    PuMer reduces both streams in the text layer, between its attentions and its MLP. It matches
    text tokens by the keys of the self-attention, and image tokens by the keys of the
    cross-attention; the attention that the text pays to an image token is its importance. The image
    layer runs on the image tokens that are left.
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, eps: float, *, form: Form, protect_class: bool
    ) -> None:
        """Create both layers.

        Args:
            form: see `Form`.
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
        ops: Operators,
        matcher: PuMer | None = None,
        counts: tuple[Count, ...] = (0, 0, 0),
    ) -> tuple[Tokens, Tokens]:
        """Run both layers.

        Args:
            matcher: None in a layer that never reduces.
            counts: image tokens to prune, image tokens to merge, text tokens to merge.
        """
        attended = self.text.attend(text, image, ops)
        words = text._replace(x=attended.x)
        if matcher is not None:
            prune, merge, merge_text = counts
            importance = self._importance(attended, text, image, ops)
            words = ops.reduce(words, attended.keys, self.heads, matcher.merge, merge_text)
            image_counts = (prune, merge, 0)
            image = ops.reduce(
                image, attended.cross_keys, self.heads, matcher, image_counts, importance
            )
        words = words._replace(x=self.text.mlp(words.x))
        visible_text = words if self.form == "sequential" else text
        patches = self.image.mlp(self.image.attend(image, visible_text, ops).x)
        return words, image._replace(x=patches)

    def _importance(
        self, attended: Attended, text: Tokens, image: Tokens, ops: Operators
    ) -> Tensor:
        """Return the importance (B, N) of the image tokens."""
        queries = attended.queries
        importance = ops.importance(
            queries, attended.cross_keys, image.size, text.size, queries.shape[1], self.heads
        )
        if not self.protect_class:
            return importance
        first = torch.full_like(importance[:, :1], TOP_IMPORTANCE)
        return torch.cat([first, importance[:, 1:]], dim=1)
