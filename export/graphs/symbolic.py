"""Operators that emit nodes of the `tokenfold` domain while a network is traced.

The counts of a reduction are elements of the runtime plan, so the number of tokens after it is
known only when the graph runs. The trace reads it from the shape of `Reduce`'s output, and shapes
that a network computes from it become nodes of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenfold.export.ops.functions import EXACT, PLUGIN_ATTRIBUTES, VERSION
from tokenfold.models.networks.operators import Count, Tokens
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe
from tokenfold.runtime.libraries import DOMAIN


class Symbolic:
    """Operators that emit nodes; see `tokenfold.export.ops.functions` for the ops."""

    def __init__(self) -> None:
        self._ones: dict[str, Tensor] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, heads: int) -> Tensor:
        if size is None:
            size = self._unit_sizes(k)
        attributes = {"heads": heads, "scale": _scale(q, heads)}
        return _emit("Attend", [q, k, v, size], attributes, [(q.dtype, q.shape)])[0]

    def _unit_sizes(self, k: Tensor) -> Tensor:
        """Return sizes of 1 (B, N), one tensor for all keys of a shape."""
        shape = str(k.shape[:2])
        if shape not in self._ones:
            self._ones[shape] = torch.ones(k.shape[:2], dtype=torch.float32)
        return self._ones[shape]

    def importance(
        self, q: Tensor, k: Tensor, size: Tensor, query_size: Tensor, queries: Count, heads: int
    ) -> Tensor:
        """Emit `Importance`; see `tokenfold.models.networks.operators.Operators.importance`."""
        return _emit(
            "Importance",
            [q, k, size, query_size, _tensor(queries)],
            {"heads": heads, "scale": _scale(q, heads)},
            [(torch.float32, size.shape)],
        )[0]

    def reduce(
        self,
        tokens: Tokens,
        keys: Tensor,
        heads: int,
        matcher: Matcher | PuMer,
        amount: Count | tuple[Count, ...],
        importance: Tensor | None = None,
    ) -> Tokens:
        """Emit a matcher and `Reduce`; see `tokenfold.models.networks.operators.Operators.reduce`.

        Args:
            amount: counts, as tensors.
        """
        x, size, trace, text = tokens
        batch, before, dim = x.shape
        kind, attributes = _node(matcher)
        inputs = [keys, size]
        if isinstance(matcher, PuMer):
            if importance is None or not isinstance(amount, tuple):
                raise TypeError("PuMer needs the importance of tokens and a tuple of three counts")
            words, counts = _tensor(text), [_tensor(count) for count in amount]
            inputs += [importance, words, torch.cat(counts)]
            text, r = _pumer_left(words, _length(size), counts)
            protected = EXACT
        else:
            if not isinstance(amount, Tensor):
                raise TypeError(f"a count in a graph must be a tensor, not {type(amount).__name__}")
            r = amount
            inputs.append(r)
            protected = int(attributes["protected"])
        slots = _emit(
            kind, inputs, {"heads": heads, **attributes}, [(torch.int64, (batch, before))]
        )[0]
        unknown = _number(r, before)
        y, new_size, new_trace = _emit(
            "Reduce",
            [x, size, slots, r, trace],
            {"protected": protected},
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
        return Tokens(y, new_size, new_trace, text)


def on_host(plan: Tensor, batch: Tensor) -> Tensor:
    """Return the plan as plan + 0 * len(batch), which keeps its counts in host memory.

    On a GPU, ONNX Runtime computes integers on the host if they depend on a shape, but not if they
    depend on an input only. Computed from the plain plan, the counts would be on the GPU, and each
    would be copied back for the op that takes it: a wait in every layer, and no CUDA graph.

    Args:
        plan: int64 (P,), an input of the graph.
        batch: an input of the graph, of any shape.
    """
    length = torch.onnx.ops.symbolic(
        "Shape", [batch], attrs={"start": 0, "end": 1}, dtype=torch.int64, shape=[1]
    )
    zero = _integer_op("Mul", length, torch.tensor([0]))
    host_plan: Tensor = torch.onnx.ops.symbolic(
        "Add", [plan, zero], dtype=torch.int64, shape=plan.shape
    )
    return host_plan


def _pumer_left(text: Tensor, tokens: Tensor, counts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the text tokens left and the number of removed tokens, int64 (1,) each.

    Emits the computation of `tokenfold.bundle.pair_workload.pumer_widths`.
    """
    prune, merge, text_count = counts
    image = _integer_op("Sub", tokens, text)
    no_tokens, one_token = torch.tensor([0]), torch.tensor([1])
    keep = _integer_op(
        "Max",
        _integer_op("Sub", image, _integer_op("Max", prune, no_tokens)),
        _integer_op("Min", image, one_token),
    )
    text_after = _integer_op("Sub", text, _clamp(text_count, text))
    image_after = _integer_op("Sub", keep, _clamp(merge, keep))
    return text_after, _integer_op("Sub", tokens, _integer_op("Add", text_after, image_after))


def _clamp(r: Tensor, tokens: Tensor) -> Tensor:
    """Emit `tokenfold.bundle.workload.clamp` with one protected token."""
    room = _integer_op("Div", _integer_op("Sub", tokens, torch.tensor([1])), torch.tensor([2]))
    return _integer_op("Max", _integer_op("Min", r, room), torch.tensor([0]))


def _integer_op(kind: str, a: Tensor, b: Tensor) -> Tensor:
    """Emit a standard ONNX op with two inputs, int64 (1,)."""
    out: Tensor = torch.onnx.ops.symbolic(kind, [a, b], dtype=torch.int64, shape=[1])
    return out


def _length(size: Tensor) -> Tensor:
    """Return N of (B, N) as int64 (1,)."""
    out: Tensor = torch.onnx.ops.symbolic(
        "Shape", [size], attrs={"start": 1, "end": 2}, dtype=torch.int64, shape=[1]
    )
    return out


def _tensor(count: Count) -> Tensor:
    """Return a count as int64 (1,)."""
    if isinstance(count, Tensor):
        return count.reshape(1)
    return torch.full((1,), count, dtype=torch.int64)


def _scale(q: Tensor, heads: int) -> float:
    return float((q.shape[-1] // heads) ** -0.5)


def _number(scalar: Tensor, limit: int | torch.SymInt) -> Any:
    """Return a number that is known at run time only; the tracer assumes 2 to `limit`."""
    number: Any = scalar.item()
    torch._check(number >= 2)
    torch._check(number <= limit)
    return number


def _of_shape(tensor: Tensor, shape: Sequence[int | torch.SymInt]) -> Tensor:
    """Return the same tensor with a shape for the tracer; it costs nothing in the graph."""
    shaped: Tensor = torch.onnx.ops.symbolic("Identity", [tensor], dtype=tensor.dtype, shape=shape)
    return shaped


def _node(matcher: Matcher | PuMer) -> tuple[str, dict[str, int | float]]:
    """Return the op type and attributes of a matcher.

    Raises:
        TypeError: the matcher has no op.
    """
    if isinstance(matcher, ToMe):
        return "MatchToMe", {"protected": matcher.protected}
    if isinstance(matcher, PiToMe):
        return "MatchPiToMe", {"protected": matcher.protected, "margin": matcher.margin}
    if isinstance(matcher, PuMer):
        return "MatchPuMer", {}
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
