"""The text tower of a dual encoder, CLIP's or SigLIP's."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tokenfold.bundle.workload import TextWorkload
from tokenfold.models.blocks import Activation, Block
from tokenfold.models.operators import EAGER, Eager, Operators, Tokens


class TextConfig(BaseModel):
    """Which tower. Widths in channels.

    Attributes:
        vocabulary: word embeddings.
        most_text: tokens that a text may have, the special ones included.
        classes: width of the embedding that comes out.
        causal: whether a token sees only those before it (CLIP). Then what follows a text changes
            nothing, and it runs at its exact length.
        padded: whether the network was trained on texts padded to `most_text` that attend to their
            padding (SigLIP). Then a text without its padding is another text.
        projection_bias: of the last linear map.
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
    def _fits_together(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"the width {self.dim} does not divide into {self.heads} heads")
        return self

    @property
    def workload(self) -> TextWorkload:
        """What decides the FLOPs of a text."""
        return TextWorkload(
            depth=self.depth, dim=self.dim, mlp_dim=self.mlp_dim, head=self.dim * self.classes
        )


class Causal(Eager):
    """Attention in which a token sees only itself and those before it; sizes do not count."""

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
    """Words and positions, pre-norm blocks, and the last token's projection."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        self.words = nn.Embedding(config.vocabulary, d)
        self.positions = nn.Embedding(config.most_text, d)
        self.blocks = nn.ModuleList(
            Block(d, config.heads, config.mlp_dim, activation=config.activation, eps=config.eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(d, config.eps)
        self.head = nn.Linear(d, config.classes, bias=config.projection_bias)

    def forward(self, ids: Tensor, size: Tensor | None = None, *, run: Operators = EAGER) -> Tensor:
        """(B, T) int64 -> embeddings (B, classes), of any length.

        Args:
            size: (B, T) float32, 1 for a token and 0 for padding at the end, which nothing attends
                to; None where no text is shorter than the longest.
            run: who runs attention.
        """
        tokens = Tokens.start(self.words(ids) + self.positions.weight[: ids.shape[1]], size)
        if self.config.causal:
            run = Causal()
        for block in self.blocks:
            tokens = block(tokens, run, size=size)
        last = tokens.x[:, -1]
        if size is not None:
            index = (size > 0).sum(1).sub(1)[:, None, None].expand(-1, 1, tokens.x.shape[2])
            last = tokens.x.gather(1, index)[:, 0]
        out: Tensor = self.head(self.norm(last))
        return out
