"""Pre-norm transformer block that all networks share: attention, reduction, MLP."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tokenfold.models.networks.operators import Operators, Tokens
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU, x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class GELUTanh(nn.GELU):
    """Tanh approximation of GELU."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": GELUTanh,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention that also hands out its queries and keys, for the matchers."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool, qk_norm: bool, eps: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"the width {dim} does not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = nn.LayerNorm(dim // heads, eps)
            self.k_norm = nn.LayerNorm(dim // heads, eps)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, size: Tensor | None, ops: Operators
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, N, D) to the output, the queries and the keys, each (B, N, D)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.qk_norm:
            q = self.q_norm(q.unflatten(2, (self.heads, -1))).flatten(2)  # (B, N, heads * d)
            k = self.k_norm(k.unflatten(2, (self.heads, -1))).flatten(2)
        return self.proj(ops.attend(q, k, v, size, self.heads)), q, k


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class GatedMlp(nn.Module):
    """SwiGLU: `fc2(silu(gate) * value)`, gate and value from one linear layer (DINOv2 giant)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        out: Tensor = self.fc2(nn.functional.silu(gate) * value)
        return out


class BlockVariant(NamedTuple):
    """Differences between the blocks of the supported networks; the defaults are ViT's.

    Attributes:
        activation: activation of a plain MLP; a gated MLP always has SiLU.
        qk_norm: whether a layer norm is applied to the queries and keys of each head.
        eps: epsilon of all layer norms.
    """

    activation: Activation = "gelu"
    gated_mlp: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    eps: float = 1e-6


PLAIN_BLOCK = BlockVariant()


class Block(nn.Module):
    """`x += attention(norm1(x))`, then reduce, then `x += mlp(norm2(x))` (ToMe, figure 1)."""

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, variant: BlockVariant = PLAIN_BLOCK
    ) -> None:
        super().__init__()
        eps, scaled = variant.eps, variant.layer_scale
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = Attention(
            dim, heads, qkv_bias=variant.qkv_bias, qk_norm=variant.qk_norm, eps=eps
        )
        self.ls1: nn.Module = LayerScale(dim) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp: nn.Module = (
            GatedMlp(dim, mlp_dim) if variant.gated_mlp else Mlp(dim, mlp_dim, variant.activation)
        )
        self.ls2: nn.Module = LayerScale(dim) if scaled else nn.Identity()

    def forward(
        self,
        tokens: Tokens,
        ops: Operators,
        matcher: Matcher | PuMer | None = None,
        amount: int | tuple[int, ...] = 0,
        *,
        size: Tensor | None = None,
    ) -> Tokens:
        """Run the block.

        Args:
            tokens: tokens whose `x` is (B, N, D).
            matcher: selects the tokens to remove; None in a layer that never reduces.
            amount: number of tokens to remove; for PuMer (prune, merge, text).
            size: (B, N), size of each token in attention; None counts all as 1.
        """
        heads = self.attn.heads
        attended, queries, keys = self.attn(self.norm1(tokens.x), size, ops)
        tokens = tokens._replace(x=tokens.x + self.ls1(attended))
        if matcher is not None:
            importance = None
            if isinstance(matcher, PuMer):
                counted = tokens.size if size is None else size
                importance = ops.importance(queries, keys, counted, counted, tokens.text, heads)
            tokens = ops.reduce(tokens, keys, heads, matcher, amount, importance)
        return tokens._replace(x=tokens.x + self.ls2(self.mlp(self.norm2(tokens.x))))
