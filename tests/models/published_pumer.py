"""PuMer's published arithmetic, to reproduce its results.

Tokenfold's own operators ignore padding, so that results do not depend on the batch. In PuMer's
code, padding merges with text tokens. The mask of a merged token is then a fraction, by which
attention is multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenfold.models.networks.operators import Count, EagerOperators, Tokens
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer

EPS = 1e-6


class Published(EagerOperators):
    """Operators whose token size is PuMer's mask: the share of the token that is not padding.

    Run a network with size 0 for padding and 1 for other tokens, and with `weighted=True`, which
    passes the mask on from layer to layer.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        mask = k.new_ones(k.shape[:2]) if size is None else size
        out: Tensor = _shares(q, k, mask, heads) @ v.unflatten(2, (heads, -1)).transpose(1, 2)
        return out.transpose(1, 2).flatten(2)

    def importance(
        self,
        q: Tensor,
        k: Tensor,
        size: Tensor,
        query_size: Tensor,  # noqa: ARG002
        queries: Count,
        heads: int,
    ) -> Tensor:
        """Return the mean over the first queries, including padding."""
        return _shares(q, k, size, heads)[:, :, :queries].mean(dim=(1, 2))

    def reduce(
        self,
        tokens: Tokens,
        keys: Tensor,
        heads: int,
        matcher: Matcher | PuMer,
        amount: Count | tuple[Count, ...],
        importance: Tensor | None = None,
    ) -> Tokens:
        """Reduce by plain means, with the mask as an additional channel of each token."""
        whole = torch.ones_like(tokens.size)
        mask = tokens.size.unsqueeze(-1).to(tokens.x.dtype)
        widened = tokens._replace(x=torch.cat([tokens.x, mask], dim=-1), size=whole)
        out = super().reduce(widened, keys, heads, matcher, amount, importance)
        return out._replace(x=out.x[..., :-1], size=out.x[..., -1].to(tokens.size.dtype))


def _shares(q: Tensor, k: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Return attention (B, heads, Q, N) with a mask (B, N), 0 to 1, as a factor (PuMer).

    `p = (e m + eps / N) / (sum of e m + eps)` with `e = exp(score - highest score)`. m is the mask,
    except on the diagonal, where it is 1, even in cross-attention.
    """
    q, k = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5  # (B, heads, Q, N)
    queries, keys = scores.shape[2:]
    diagonal = torch.eye(queries, keys, device=mask.device, dtype=mask.dtype)
    factor = (mask[:, None, :] * (1 - diagonal) + diagonal).unsqueeze(1)  # (B, 1, Q, N)
    weight = (scores - scores.amax(dim=-1, keepdim=True)).exp() * factor
    shares: Tensor = (weight + EPS / keys) / (weight.sum(dim=-1, keepdim=True) + EPS)
    return shares


PUBLISHED = Published()
