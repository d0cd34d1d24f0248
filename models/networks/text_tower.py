"""Text tower of a dual encoder, CLIP's or SigLIP's."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold.bundle.workload import TextWorkload
from tokenfold.models.networks.blocks import Activation, Block, BlockVariant
from tokenfold.models.networks.operators import EAGER, EagerOperators, Operators, Tokens


class TextConfig(BaseModel):
    """Configuration of a text tower. Widths are in channels.

    Attributes:
        vocabulary: number of word embeddings.
        most_text: maximum tokens of a text, special tokens included.
        classes: width of the text embedding.
        causal: whether a token attends only to itself and earlier tokens (CLIP). Padding after a
            text then changes nothing, and the text runs at its exact length.
        padded: whether the network was trained on texts padded to `most_text` that attend to their
            padding (SigLIP). Removing the padding of a text then changes its embedding.
        projection_bias: whether the last linear layer has a bias.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int = Field(ge=1)
    most_text: int = Field(ge=1)
    dim: int = Field(ge=1)
    depth: int = Field(ge=1)
    heads: int = Field(ge=1)
    mlp_dim: int = Field(ge=1)
    classes: int = Field(ge=1)
    activation: Activation = "gelu"
    eps: float = 1e-5
    causal: bool = False
    padded: bool = False
    projection_bias: bool = False

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"the width {self.dim} does not divide into {self.heads} heads")
        return self

    @property
    def workload(self) -> TextWorkload:
        """Sizes that determine the FLOPs of a text."""
        return TextWorkload(
            depth=self.depth, dim=self.dim, mlp_dim=self.mlp_dim, head=self.dim * self.classes
        )


class CausalOperators(EagerOperators):
    """Causal attention: a token attends to itself and earlier tokens. Sizes are ignored."""

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        size: Tensor | None,  # noqa: ARG002
        heads: int,
    ) -> Tensor:
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, heads, N, d)
        return out.transpose(1, 2).flatten(2)  # (B, N, heads * d)


class TextTower(nn.Module):
    """Word and position embeddings, pre-norm blocks, and a projection of the last token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        self.words = nn.Embedding(config.vocabulary, d)
        self.positions = nn.Embedding(config.most_text, d)
        variant = BlockVariant(activation=config.activation, eps=config.eps)
        self.blocks = nn.ModuleList(
            Block(d, config.heads, config.mlp_dim, variant) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(d, config.eps)
        self.head = nn.Linear(d, config.classes, bias=config.projection_bias)

    def forward(self, ids: Tensor, size: Tensor | None = None, *, ops: Operators = EAGER) -> Tensor:
        """Map ids (B, T) int64 to embeddings (B, classes), which are not normalised.

        Args:
            size: (B, T) float32, 1 for a token and 0 for padding, which is at the end and which
                attention ignores; None if no text is padded.
            ops: implementation of attention.
        """
        tokens = Tokens.start(self.words(ids) + self.positions.weight[: ids.shape[1]], size)
        if self.config.causal:
            ops = CausalOperators()
        for block in self.blocks:
            tokens = block(tokens, ops, size=size)
        last = tokens.x[:, -1]
        if size is not None:
            index = (size > 0).sum(1).sub(1)[:, None, None].expand(-1, 1, tokens.x.shape[2])
            last = tokens.x.gather(1, index)[:, 0]
        out: Tensor = self.head(self.norm(last))
        return out
