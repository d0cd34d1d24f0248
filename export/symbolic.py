"""Operators that emit nodes of the `tokenfold` domain while a network is exported.

A reduction's `r` is an element of the runtime plan, so the number of tokens behind it is known only
when the graph runs: it is read back from the shape of what `Reduce` returns, and where a network
computes shapes from it, the graph does too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from export.plugins.functions import DOMAIN, PLUGIN_ATTRIBUTES, VERSION
from models.operators import Tokens
from models.reduction.matcher import Matcher
from models.reduction.pitome import PiToMe
from models.reduction.tome import ToMe


class Symbolic:
    """Emits `Attend`, a matcher and `Reduce`; see `export.plugins.functions` for what they do."""

    def __init__(self) -> None:
        self._ones: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        if size is None:
            size = self._even(q)
        scale = (q.shape[-1] // heads) ** -0.5
        return _emit(
            "Attend", [q, k, v, size], {"heads": heads, "scale": scale}, [(q.dtype, q.shape)]
        )[0]

    def _even(self, q: Tensor) -> Tensor:
        """Sizes of 1, made once: they are asked for only before the first reduction."""
        if self._ones is None:
            self._ones = torch.ones_like(q[:, :, 0], dtype=torch.float32)
        return self._ones

    def reduce(
        self, tokens: Tokens, keys: Tensor, heads: int, matcher: Matcher, r: int | Tensor
    ) -> Tokens:
        """As `models.operators.Operators.reduce`, with `r` an int64 tensor of one element."""
        if not isinstance(r, Tensor):
            raise TypeError("a graph's plan is a tensor")
        x, size, trace, _ = tokens
        batch, before, dim = x.shape
        kind, attributes = _node(matcher)
        slots = _emit(
            kind,
            [keys, size, r],
            {"heads": heads, **attributes},
            [(torch.int64, (batch, before))],
        )[0]
        unknown = _number(r, before)
        y, new_size, new_trace = _emit(
            "Reduce",
            [x, size, slots, r, trace],
            {"protected": attributes["protected"]},
            [
                (x.dtype, (batch, unknown, dim)),
                (torch.float32, (batch, unknown)),
                (torch.int64, trace.shape),
            ],
        )
        shape = torch.onnx.ops.symbolic("Shape", [y], dtype=torch.int64, shape=[3])
        after = _number(shape[1], before)
        y = _of_shape(y, (batch, after, dim))
        new_size = _of_shape(new_size, (batch, after))
        return Tokens(y, new_size, new_trace)


def _number(scalar: Tensor, most: int | torch.SymInt) -> Any:
    """A number that is known when the graph runs, for the tracer at least 2."""
    number: Any = scalar.item()
    torch._check(number >= 2)
    torch._check(number <= most)
    return number


def _of_shape(tensor: Tensor, shape: Sequence[int | torch.SymInt]) -> Tensor:
    """The same tensor, with a shape that the tracer believes in. Costs nothing in the graph."""
    same: Tensor = torch.onnx.ops.symbolic("Identity", [tensor], dtype=tensor.dtype, shape=shape)
    return same


def _node(matcher: Matcher) -> tuple[str, dict[str, int | float]]:
    """The op type and attributes of a matcher.

    Raises:
        TypeError: a matcher that has no op.
    """
    if isinstance(matcher, ToMe):
        return "MatchToMe", {"protected": matcher.protected}
    if isinstance(matcher, PiToMe):
        return "MatchPiToMe", {"protected": matcher.protected, "margin": matcher.margin}
    raise TypeError(f"{type(matcher).__name__} has no op to export to")


def _emit(
    kind: str,
    inputs: Sequence[Tensor],
    attributes: dict[str, int | float],
    outputs: Sequence[tuple[torch.dtype, Sequence[int | torch.SymInt]]],
) -> Sequence[Tensor]:
    emitted: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{kind}",
        inputs,
        {**attributes, **PLUGIN_ATTRIBUTES},
        dtypes=[dtype for dtype, _ in outputs],
        shapes=[shape for _, shape in outputs],
        version=VERSION,
    )
    return emitted
