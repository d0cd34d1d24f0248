"""The ops of the `tokenfold` domain as ONNX functions: the portable bodies that any runtime runs.

They define the ops; the kernels and `tokenfold.models.reduction` compute the same. A model carries
the functions it uses, so that it runs without our library.

    Attend       q, k, v, size -> softmax(q k^T scale + log size) v
    Importance   q, k, size, query_size, queries -> importance
    MatchToMe    keys, size, r -> slots
    MatchPiToMe  keys, size, r -> slots
    MatchPuMer   keys, size, importance, text, counts -> slots
    Reduce       x, size, slots, r, trace -> y, size', trace'
    Linear       x, w, bias -> x w + bias
    LinearGelu   x, w, bias -> GELU(x w + bias)
    LinearAdd    x, w, bias, residual -> residual + x w + bias

and `AttendPacked`, `MatchToMePacked` and `MatchPiToMePacked`, which take qkv (B, N, 3 D), in each
token its queries, keys and values, instead of them,

with q (B, Q, D) and k, v, keys, x and residual (B, N, D), w (D, E) and bias (E) of any float type,
size and importance (B, N) and query_size (B, Q) float32, slots (B, N) and trace (B, P) int64, and
whole numbers that are int64 of one element. Values are finite, and some token is present.

`Attend` is an op beside matcher and reducer because the bias of log size that ONNX Runtime's own
attention would need costs more than matching and reducing together (measured at 197 tokens: 60
microseconds on top of 740, against 50 for both). Its kernel takes the sizes as they are.

`Importance` is what PuMer asks of attention: the probabilities of the first `queries` queries (all,
if there are fewer), their mean over heads and over queries weighted by query_size; 0 where no query
counts. It is computed from q and k once more, for those queries alone, so that attention itself
need not keep probabilities; at ViLT's sizes that costs 0.19 ms where `Attend` takes 1.19 (more in
`tokenfold.export.ops.attention`).

Of r tokens that a matcher is asked to remove `max(0, min(r, (N - protected) / 2))` go; protected is
0 to 2 for ToMe. Counts of `MatchPuMer` are (prune, merge, merge of the text): as many go as
`tokenfold.bundle.pair_workload.pumer_widths` says, and if none goes then nothing moves. text is the
number of leading tokens that are text, taken as 0 to N. `Reduce` computes from its own `protected`
how many tokens go; with `protected = EXACT` r of them go.

The `plugin_` attributes are for TensorRT, which finds its plugins by them.
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

# Tokens that go.
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

# A one-hot matrix product: built already transposed, for ONNX Runtime's Transpose + MatMul reads
# stale memory where the inner size is 0.
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
    """ToMe with a class token from PART__metric, PART__size and PART__r.

    All names are those of `MatchToMe` behind the part's, PART__slots and PART__count among them. A
    call of another function would be shorter, but not every runtime looks for functions inside of
    functions.
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
    """Every op's body, by op type."""
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
