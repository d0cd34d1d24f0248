"""Ops of the `tokenfold` domain as ONNX functions, whose bodies any runtime can run.

The bodies define the ops; the kernels and `tokenfold.models.reduction` compute the same. A model
contains the functions it uses, so that it runs without our library.

    Attend       q, k, v, size -> softmax(q k^T scale + log size) v
    Importance   q, k, size, query_size, queries -> importance
    MatchToMe    keys, size, r -> slots
    MatchPiToMe  keys, size, r -> slots
    MatchPuMer   keys, size, importance, text, counts -> slots
    Reduce       x, size, slots, r, trace -> y, size', trace'
    Linear       x, w, bias -> x w + bias
    LinearGelu   x, w, bias -> GELU(x w + bias)
    LinearAdd    x, w, bias, residual -> residual + x w + bias

`AttendPacked`, `MatchToMePacked` and `MatchPiToMePacked` take qkv (B, N, 3 D) instead of q, k, v or
keys: the query, key and value of each token side by side.

Shapes and types: q (B, Q, D), k, v, keys, x and residual (B, N, D), w (D, E) and bias (E) have any
float type; size and importance (B, N) and query_size (B, Q) are float32; slots (B, N) and trace
(B, P) are int64; counts are int64 with one element. Values are finite, and at least one token is
present.

`Attend` is a separate op because ONNX Runtime's attention would need the bias log size as an input,
which costs more than matching and reducing together (measured at 197 tokens: 60 microseconds on top
of 740, against 50 for both). The kernel of `Attend` takes the sizes directly.

`Importance` is the score by which PuMer prunes: the attention probabilities of the first `queries`
queries (all, if there are fewer), averaged over heads and over queries weighted by query_size; 0
if no query has a size. It is computed from q and k again, for those queries only, so that attention
need not store probabilities. At ViLT's sizes this takes 0.19 ms, `Attend` 1.19 ms (more in
`tokenfold.export.ops.attention`).

A matcher with a count of r removes `max(0, min(r, (N - protected) / 2))` tokens; protected is 0 to
2 for ToMe. The counts of `MatchPuMer` are (prune, merge, merge of the text); it removes as many
tokens as `tokenfold.bundle.pair_workload.pumer_widths` computes, and moves nothing if that is none.
text is the number of leading tokens that are text, clamped to 0..N. `Reduce` computes the number of
removed tokens from its own `protected`; with `protected = EXACT` it is r.

TensorRT finds its plugins by the `plugin_` attributes.
"""

from __future__ import annotations

import onnx.parser
from onnx import FunctionProto, NodeProto

from tokenfold.export.ops.attention import ATTEND, IMPORTANCE
from tokenfold.export.ops.linear import LINEAR, LINEAR_ADD, LINEAR_GELU
from tokenfold.export.ops.matching import (
    CONSTANTS,
    COUNTS,
    MATCH_PITOME,
    MATCH_TOME,
    MEAN,
    PROTECTED_TOKENS,
    PUMER_PARTS,
    PUMER_SLOTS,
    UNIT,
)
from tokenfold.runtime.libraries import DOMAIN

VERSION = 1
OPSET = 20
EXACT = -1
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}

_HEADER = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>'

# Number of removed tokens.
_REDUCED = """
    shape = Shape(size)
    n = Gather<axis = 0>(shape, ones)
    unprotected = Sub(n, protected)
    half = Div(unprotected, two)
    exact = Less(protected, zero)
    room = Where(exact, n, half)
    wanted = Min(r, room)
    count = Max(wanted, zero)
"""

_APART = """
    q, k, v = Split<axis = -1, num_outputs = 3>(qkv)
"""

# A one-hot matrix product. It is built transposed, because ONNX Runtime's Transpose + MatMul reads
# stale memory if the inner size is 0.
_REDUCE = """
    width = Sub(n, count)
    width_scalar = Squeeze(width, zeros)
    position = Range(zero, width_scalar, one)
    position_column = Unsqueeze(position, ones)
    slots_row = Unsqueeze(slots, ones)
    lands = Equal(slots_row, position_column)
    size_row = Unsqueeze(size, ones)
    weight = Where(lands, size_row, nothing)
    new_size = ReduceSum<keepdims = 0>(weight, last)
    least_size = Constant<value_float = 1e-30>()
    safe_size = Max(new_size, least_size)
    size_column = Unsqueeze(safe_size, last)
    share = Div(weight, size_column)
    wide = Cast<to = 1>(x)
    mean = MatMul(share, wide)
    y = CastLike(mean, x)
    dropped = Less(trace, zero)
    safe_trace = Max(trace, zero)
    followed = GatherElements<axis = 1>(slots, safe_trace)
    new_trace = Where(dropped, trace, followed)
"""


def _parsed(signature: str, body: str) -> FunctionProto:
    return onnx.parser.parse_function(f"{_HEADER}\n{signature}\n{{{body}}}")


def _function(signature: str, body: str) -> FunctionProto:
    function = _parsed(signature, body)
    function.attribute.extend(PLUGIN_ATTRIBUTES)
    return function


def _merging(part: str) -> list[NodeProto]:
    """Return the nodes of ToMe with a class token, with the prefix PART__ in all names.

    Inputs are PART__metric, PART__size and PART__r; outputs include PART__slots and PART__count. A
    call of `MatchToMe` would be shorter, but not every runtime finds functions inside functions.
    """
    protected = "protected = Constant<value_int = 1>()"
    body = CONSTANTS + protected + COUNTS + UNIT + MATCH_TOME
    nodes = list(_parsed("Merge(metric, size, r) => (slots)", body).node)
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [f"{part}__{name}" for name in names]
    return nodes


def _match_pumer() -> FunctionProto:
    signature = "MatchPuMer<heads>(keys, size, importance, text, counts) => (slots)"
    function = _function(signature, CONSTANTS + MEAN + PUMER_PARTS)
    for part in ("text", "kept"):
        function.node.extend(_merging(part))
    function.node.extend(_parsed(signature, PUMER_SLOTS).node)
    return function


def functions() -> dict[str, FunctionProto]:
    """Return the function of every op, by op type."""
    keys_apart = _APART.replace("k,", "keys,")
    match = CONSTANTS + PROTECTED_TOKENS + COUNTS + MEAN + UNIT
    return {
        "Attend": _function("Attend<heads, scale>(q, k, v, size) => (out)", ATTEND),
        "Importance": _function(
            "Importance<heads, scale>(q, k, size, query_size, queries) => (importance)", IMPORTANCE
        ),
        "MatchToMe": _function(
            "MatchToMe<heads, protected>(keys, size, r) => (slots)", match + MATCH_TOME
        ),
        "MatchPiToMe": _function(
            "MatchPiToMe<heads, protected, margin>(keys, size, r) => (slots)",
            match + MATCH_PITOME,
        ),
        "MatchPuMer": _match_pumer(),
        "AttendPacked": _function(
            "AttendPacked<heads, scale>(qkv, size) => (out)", f"{_APART}\n{ATTEND}"
        ),
        "MatchToMePacked": _function(
            "MatchToMePacked<heads, protected>(qkv, size, r) => (slots)",
            keys_apart + match + MATCH_TOME,
        ),
        "MatchPiToMePacked": _function(
            "MatchPiToMePacked<heads, protected, margin>(qkv, size, r) => (slots)",
            keys_apart + match + MATCH_PITOME,
        ),
        "Linear": _function("Linear(x, w, bias) => (y)", LINEAR),
        "LinearGelu": _function("LinearGelu(x, w, bias) => (y)", LINEAR_GELU),
        "LinearAdd": _function("LinearAdd(x, w, bias, residual) => (y)", LINEAR_ADD),
        "Reduce": _function(
            "Reduce<protected>(x, size, slots, r, trace) => (y, new_size, new_trace)",
            CONSTANTS + PROTECTED_TOKENS + _REDUCED + _REDUCE,
        ),
    }
