"""The ops of the `tokenfold` domain as ONNX functions: the portable bodies that any runtime runs.

They define the ops; the kernels and `models.reduction` compute the same. A model carries the
functions it uses, so that it runs without our library.

`Attend` is a third op beside matcher and reducer: the bias of log size that ONNX Runtime's own
attention would need costs more than matching and reducing together (measured at 197 tokens: 60
microseconds on top of 740, against 50 for both). Its kernel takes the sizes as they are.

    Attend       q, k, v, size -> softmax(q k^T scale + log size) v
    MatchToMe    keys, size, r -> slots
    MatchPiToMe  keys, size, r -> slots
    Reduce       x, size, slots, r, trace -> y, size', trace'

with q, k, v, keys, x (B, N, D) of any float type, size (B, N) float32, slots (B, N) and trace
(B, P) int64, and r int64 of one element: `max(0, min(r, (N - protected) / 2))` tokens go.
Values are finite; protected is 0 to 2 for ToMe.

Ranks are counted by comparison instead of sorted: no shape depends on the data, and ties go to the
lowest index in every runtime. The `plugin_` attributes are for TensorRT, which finds its plugins by
them.
"""

from __future__ import annotations

import onnx
import onnx.parser
from onnx import FunctionProto

from models.reduction.matcher import ABSENT, PROTECTED
from models.reduction.pitome import STEPS

DOMAIN = "tokenfold"
VERSION = 1
OPSET = 20
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}

_HEADER = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>'

_CONSTANTS = """
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    two = Constant<value_int = 2>()
    zeros = Constant<value_ints = [0]>()
    ones = Constant<value_ints = [1]>()
    twos = Constant<value_ints = [2]>()
    last = Constant<value_ints = [-1]>()
    end = Constant<value_ints = [9223372036854775807]>()
    nothing = Constant<value_float = 0.0>()
"""

# n and count are of one element, token is 0..N-1.
_COUNTS = """
    protected = Constant<value_int: int = @protected>()
    shape = Shape(size)
    n = Gather<axis = 0>(shape, ones)
    n_scalar = Squeeze(n, zeros)
    unprotected = Sub(n, protected)
    room = Div(unprotected, two)
    wanted = Min(r, room)
    count = Max(wanted, zero)
    token = Range(zero, n_scalar, one)
"""

# The keys' mean over heads, scaled to length 1: (B, N, D / heads) float32.
_UNIT = """
    heads_scalar = Constant<value_int: int = @heads>()
    heads_list = Reshape(heads_scalar, ones)
    batch_and_tokens = Constant<value_ints = [0, 0]>()
    split = Concat<axis = 0>(batch_and_tokens, heads_list, last)
    wide = Cast<to = 1>(keys)
    by_head = Reshape(wide, split)
    metric = ReduceMean<keepdims = 0>(by_head, twos)
    square = Mul(metric, metric)
    length_square = ReduceSum<keepdims = 1>(square, last)
    length = Sqrt(length_square)
    least_length = Constant<value_float = 1e-12>()
    safe_length = Max(length, least_length)
    unit = Div(metric, safe_length)
"""

# Place in falling order of scores (B, K) with index k (K), ties to the lowest: (B, K) int64.
_RANK = """
    self_score = Unsqueeze(score, twos)
    other_score = Unsqueeze(score, ones)
    self_k = Unsqueeze(k, ones)
    other_k = Unsqueeze(k, zeros)
    above = Greater(other_score, self_score)
    level = Equal(other_score, self_score)
    earlier = Less(other_k, self_k)
    tie = And(level, earlier)
    ahead = Or(above, tie)
    ahead_count = Cast<to = 7>(ahead)
    rank = ReduceSum<keepdims = 0>(ahead_count, last)
"""

_ATTEND = """
    zeros2 = Constant<value_ints = [0, 0]>()
    one_list = Constant<value_ints = [1]>()
    last = Constant<value_ints = [-1]>()
    flat = Constant<value_ints = [0, 0, -1]>()
    middle = Constant<value_ints = [1, 2]>()
    heads_scalar = Constant<value_int: int = @heads>()
    heads_list = Reshape(heads_scalar, one_list)
    split = Concat<axis = 0>(zeros2, heads_list, last)
    scale_float = Constant<value_float: float = @scale>()
    factor = CastLike(scale_float, q)
    scaled = Mul(q, factor)
    q_split = Reshape(scaled, split)
    k_split = Reshape(k, split)
    v_split = Reshape(v, split)
    q_heads = Transpose<perm = [0, 2, 1, 3]>(q_split)
    k_heads = Transpose<perm = [0, 2, 3, 1]>(k_split)
    v_heads = Transpose<perm = [0, 2, 1, 3]>(v_split)
    product = MatMul(q_heads, k_heads)
    log_size = Log(size)
    bias = Unsqueeze(log_size, middle)
    bias_like = CastLike(bias, q)
    scores = Add(product, bias_like)
    shares = Softmax<axis = -1>(scores)
    attended = MatMul(shares, v_heads)
    together = Transpose<perm = [0, 2, 1, 3]>(attended)
    out = Reshape(together, flat)
"""

# One destination that is no token is added, for an image of a single token has none.
_MATCH_TOME = f"""
    sources = Slice(unit, zeros, end, ones, twos)
    given_destinations = Slice(unit, ones, end, ones, twos)
    one_more_row = Constant<value_ints = [0, 0, 0, 0, 1, 0]>()
    destinations = Pad(given_destinations, one_more_row)
    source_size = Slice(size, zeros, end, ones, twos)
    given_destination_size = Slice(size, ones, end, ones, twos)
    one_more = Constant<value_ints = [0, 0, 0, 1]>()
    destination_size = Pad(given_destination_size, one_more)
    n_and_one = Add(n, one)
    source_count = Div(n_and_one, two)
    source_scalar = Squeeze(source_count, zeros)
    half = Div(n_scalar, two)
    destination_scalar = Add(half, one)
    k = Range(zero, source_scalar, one)
    j = Range(zero, destination_scalar, one)
    source_token = Mul(k, two)
    twice_j = Mul(j, two)
    destination_token = Add(twice_j, one)

    destinations_transposed = Transpose<perm = [0, 2, 1]>(destinations)
    cosine = MatMul(sources, destinations_transposed)
    absent_score = Constant<value_float = {ABSENT}>()
    protected_score = Constant<value_float = {PROTECTED}>()
    no_destination = Equal(destination_size, nothing)
    no_destination_row = Unsqueeze(no_destination, ones)
    present_cosine = Where(no_destination_row, absent_score, cosine)
    protected_destination = Less(destination_token, protected)
    similarity = Where(protected_destination, protected_score, present_cosine)
    best = ReduceMax<keepdims = 0>(similarity, last)
    partner = ArgMax<axis = -1, keepdims = 0>(similarity)
    no_source = Equal(source_size, nothing)
    present_best = Where(no_source, absent_score, best)
    protected_source = Less(source_token, protected)
    score = Where(protected_source, protected_score, present_best)
{_RANK}
    merged = Less(rank, count)
    stays = Not(merged)
    stays_count = Cast<to = 7>(stays)
    running = CumSum(stays_count, one)
    by_index = Sub(running, one)
    by_score = Sub(rank, count)
    unordered = Equal(protected, zero)
    kept_place = Where(unordered, by_score, by_index)
    pair = Equal(protected, two)
    not_first = Greater(k, zero)
    moved_up = And(pair, not_first)
    shift = Cast<to = 7>(moved_up)
    kept = Add(kept_place, shift)

    kept_sources = Sub(source_count, count)
    after_kept = Add(j, kept_sources)
    is_first = Equal(j, zero)
    second_in_front = And(pair, is_first)
    after = Where(second_in_front, one, after_kept)
    after_row = Unsqueeze(after, zeros)
    blank = Cast<to = 7>(no_destination)
    blank_zero = Mul(blank, zero)
    destination_slots = Add(after_row, blank_zero)
    target = GatherElements<axis = 1>(destination_slots, partner)
    source_slots = Where(merged, target, kept)
    both = Concat<axis = 1>(source_slots, destination_slots)
    column = Div(token, two)
    is_odd = Mod(token, two)
    odd_start = Mul(is_odd, source_count)
    from = Add(column, odd_start)
    chosen = Gather<axis = 1>(both, from)
    idle = Equal(count, zero)
    slots = Where(idle, token, chosen)
"""

_MATCH_PITOME = f"""
    margin = Constant<value_float: float = @margin>()
    transposed = Transpose<perm = [0, 2, 1]>(unit)
    cosine = MatMul(unit, transposed)
    absent = Equal(size, nothing)
    leading = Less(token, protected)
    out_of_play = Or(absent, leading)
    in_play = Not(out_of_play)
    in_play_float = Cast<to = 1>(in_play)
    above_margin = Sub(cosine, margin)
    attraction_float = Elu(above_margin)
    steps = Constant<value_float = {STEPS}>()
    attraction_steps = Mul(attraction_float, steps)
    attraction = Round(attraction_steps)
    in_play_row = Unsqueeze(in_play_float, ones)
    token_row = Unsqueeze(token, zeros)
    token_column = Unsqueeze(token, ones)
    itself = Equal(token_row, token_column)
    by_others = Where(itself, nothing, attraction)
    counted = Mul(by_others, in_play_row)
    total = ReduceSum<keepdims = 0>(counted, last)
    players = ReduceSum<keepdims = 1>(in_play_float, last)
    least_players = Constant<value_float = 1.0>()
    safe_players = Max(players, least_players)
    player_steps = Mul(safe_players, steps)
    energy = Div(total, player_steps)
    absent_score = Constant<value_float = {ABSENT}>()
    protected_score = Constant<value_float = {PROTECTED}>()
    present_energy = Where(absent, absent_score, energy)
    score = Where(leading, protected_score, present_energy)
    k = Identity(token)
{_RANK}
    mergeable_count = Mul(count, two)
    mergeable = Less(rank, mergeable_count)
    parity = Mod(rank, two)
    is_even = Equal(parity, zero)
    is_odd = Equal(parity, one)
    is_source = And(mergeable, is_even)
    is_destination = And(mergeable, is_odd)
    absent_row = Unsqueeze(absent, ones)
    present_cosine = Where(absent_row, absent_score, cosine)
    destination_row = Unsqueeze(is_destination, ones)
    similarity = Where(destination_row, present_cosine, protected_score)
    partner = ArgMax<axis = -1, keepdims = 0>(similarity)
    stays = Not(is_source)
    stays_count = Cast<to = 7>(stays)
    running = CumSum(stays_count, one)
    kept = Sub(running, one)
    target = GatherElements<axis = 1>(kept, partner)
    slots = Where(is_source, target, kept)
"""

# A one-hot matrix product: built already transposed, for ONNX Runtime's Transpose + MatMul reads
# stale memory where the inner size is 0.
_REDUCE = """
    width = Sub(n_scalar, count)
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


def _function(signature: str, body: str) -> FunctionProto:
    function = onnx.parser.parse_function(f"{_HEADER}\n{signature}\n{{{body}}}")
    function.attribute.extend(PLUGIN_ATTRIBUTES)
    return function


def functions() -> dict[str, FunctionProto]:
    """Every op's body, by op type."""
    match = _CONSTANTS + _COUNTS + _UNIT
    return {
        "Attend": _function("Attend<heads, scale>(q, k, v, size) => (out)", _ATTEND),
        "MatchToMe": _function(
            "MatchToMe<heads, protected>(keys, size, r) => (slots)", match + _MATCH_TOME
        ),
        "MatchPiToMe": _function(
            "MatchPiToMe<heads, protected, margin>(keys, size, r) => (slots)",
            match + _MATCH_PITOME,
        ),
        "Reduce": _function(
            "Reduce<protected>(x, size, slots, r, trace) => (y, new_size, new_trace)",
            _CONSTANTS + _COUNTS + _REDUCE,
        ),
    }
