"""Bodies of the matchers, as ONNX text; each starts from `CONSTANTS`.

Ranks are counted by comparison instead of sorting, so that no shape depends on the data and ties go
to the lowest index in every runtime.
"""

from __future__ import annotations

from tokenfold.models.reduction.matcher import ABSENT, PROTECTED
from tokenfold.models.reduction.pitome import STEPS

CONSTANTS = """
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

# The attribute `protected` as a constant.
PROTECTED_TOKENS = """
    protected = Constant<value_int: int = @protected>()
"""

# protected is a scalar; n and count have one element; token is 0..N-1.
COUNTS = """
    shape = Shape(size)
    n = Gather<axis = 0>(shape, ones)
    n_scalar = Squeeze(n, zeros)
    unprotected = Sub(n, protected)
    room = Div(unprotected, two)
    wanted = Min(r, room)
    count = Max(wanted, zero)
    token = Range(zero, n_scalar, one)
"""

# The keys' mean over heads: (B, N, D / heads) float32.
MEAN = """
    heads_scalar = Constant<value_int: int = @heads>()
    heads_list = Reshape(heads_scalar, ones)
    batch_and_tokens = Constant<value_ints = [0, 0]>()
    split = Concat<axis = 0>(batch_and_tokens, heads_list, last)
    wide = Cast<to = 1>(keys)
    by_head = Reshape(wide, split)
    metric = ReduceMean<keepdims = 0>(by_head, twos)
"""

# The metric scaled to length 1: (B, N, D / heads).
UNIT = """
    square = Mul(metric, metric)
    length_square = ReduceSum<keepdims = 1>(square, last)
    length = Sqrt(length_square)
    least_length = Constant<value_float = 1e-12>()
    safe_length = Max(length, least_length)
    unit = Div(metric, safe_length)
"""

# Rank in descending order of scores (B, K) with index k (K), ties to the lowest: (B, K) int64.
RANK = """
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

# Slots without dropped tokens, reordered so that slots without a present token come last. Only
# equal values are written twice: where tokens merge, the last slot is unused, so absent tokens
# write their 0 there. Counting over tokens costs less than comparing all pairs.
ABSENT_LAST = """
    present = Greater(size, nothing)
    present_count = Cast<to = 7>(present)
    nobody = Sub(n, one)
    landing = Where(present, chosen, nobody)
    unfilled = Expand(zero, shape)
    filled = ScatterElements<axis = 1>(unfilled, landing, present_count)
    filled_before = CumSum<exclusive = 1>(filled, one)
    filled_in_all = ReduceSum<keepdims = 1>(filled, last)
    unfilled_before = Sub(token, filled_before)
    behind = Add(filled_in_all, unfilled_before)
    is_filled = Cast<to = 9>(filled)
    order = Where(is_filled, filled_before, behind)
    ordered = GatherElements<axis = 1>(order, chosen)
"""

# A destination that is not a token is added, because an image of a single token has none.
MATCH_TOME = f"""
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
{RANK}
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
{ABSENT_LAST}
    idle = Equal(count, zero)
    slots = Where(idle, token, ordered)
"""

MATCH_PITOME = f"""
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
{RANK}
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

# Metric and sizes of text and image are split. Without text or image, one token of the other kind
# stands in, because runtimes handle empty tensors badly, and its slot is dropped.
PUMER_PARTS = f"""
    shape = Shape(size)
    n = Gather<axis = 0>(shape, ones)
    n_scalar = Squeeze(n, zeros)
    token = Range(zero, n_scalar, one)
    given_text = Max(text, zero)
    words = Min(given_text, n)
    image = Sub(n, words)
    prune, kept__r, text__r = Split<axis = 0, num_outputs = 3>(counts)
    text_end = Max(words, one)
    text__metric = Slice(metric, zeros, text_end, ones)
    text__size = Slice(size, zeros, text_end, ones)

    last_token = Sub(n, one)
    image_start = Min(words, last_token)
    patches = Sub(n, image_start)
    patches_scalar = Squeeze(patches, zeros)
    pruned = Max(prune, zero)
    unpruned = Sub(patches, pruned)
    keep = Max(unpruned, one)
    image_metric = Slice(metric, image_start, end, ones)
    image_size = Slice(size, image_start, end, ones)
    image_importance = Slice(importance, image_start, end, ones)
    image_present = Greater(image_size, nothing)
    absent_score = Constant<value_float = {ABSENT}>()
    score = Where(image_present, image_importance, absent_score)
    k = Range(zero, patches_scalar, one)
{RANK}
    present_count = Cast<to = 7>(image_present)
    present = ReduceSum<keepdims = 1>(present_count, last)
    present_left = Sub(present, pruned)
    limit = Max(present_left, one)
    stays = Less(rank, limit)
    blank = Mul(rank, zero)
    patch = Add(blank, k)
    by_rank = ScatterElements<axis = 1>(blank, rank, patch)
    source = Slice(by_rank, zeros, keep, ones)
    source_index = Unsqueeze(source, last)
    kept__metric = GatherND<batch_dims = 1>(image_metric, source_index)
    source_size = GatherElements<axis = 1>(image_size, source)
    keep_scalar = Squeeze(keep, zeros)
    place = Range(zero, keep_scalar, one)
    within = Less(place, limit)
    kept__size = Where(within, source_size, nothing)
"""

# From text__slots and kept__slots, of which text__count and kept__count tokens merged.
PUMER_SLOTS = """
    text_after = Sub(words, text__count)
    kept_after = Sub(keep, kept__count)
    image_after = Min(kept_after, image)
    after = Add(text_after, image_after)
    last_kept = Sub(keep, one)
    kept_place = Min(rank, last_kept)
    merged_place = GatherElements<axis = 1>(kept__slots, kept_place)
    behind_text = Add(merged_place, text_after)
    ranked_slots = Where(stays, behind_text, last)
    unmoved = Equal(image_after, image)
    in_order = Add(patch, text_after)
    image_slots = Where(unmoved, in_order, ranked_slots)
    only_text = Slice(text__slots, zeros, words, ones)
    only_image = Slice(image_slots, zeros, image, ones)
    all_slots = Concat<axis = 1>(only_text, only_image)
    idle = Equal(after, n)
    slots = Where(idle, token, all_slots)
"""
