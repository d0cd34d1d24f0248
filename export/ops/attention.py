"""Bodies of the attention ops, as ONNX text.

Duration in microseconds on one core of a Zen 4 EPYC, fp32, 12 heads of 64, with our kernels
(portable bodies in brackets), beside the other ops of a PuMer layer at its published rates:

                                     ViLT-B/32: 40 + 145     METER: 40 words, 577 of an image
    Attend                           1,190 (1,450)           820 (1,120) words over image
    Importance                         190   (330)           520   (890)
    MatchPuMer                          32   (310)           179 (2,350) image, 12 (134) words
    Reduce                              24   (380)            54 (7,310) image, 14  (47) words

The linear layers of one ViLT layer take 48,500, measured in the same way beside a busy second core:
the score costs 0.4 % of each layer that reduces. Layers that do not reduce compute no score.
"""

from __future__ import annotations

ATTEND = """
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

# At least one query is used, because runtimes handle empty tensors badly; it is weighted by 0 if
# `queries` is 0.
IMPORTANCE = """
    zeros = Constant<value_ints = [0]>()
    ones = Constant<value_ints = [1]>()
    last = Constant<value_ints = [-1]>()
    middle = Constant<value_ints = [1, 2]>()
    one_and_last = Constant<value_ints = [1, 3]>()
    zeros2 = Constant<value_ints = [0, 0]>()
    heads_scalar = Constant<value_int: int = @heads>()
    heads_list = Reshape(heads_scalar, ones)
    split = Concat<axis = 0>(zeros2, heads_list, last)
    given = Max(queries, ones)
    whether = Max(queries, zeros)
    at_most_one = Min(whether, ones)
    any_asked = Cast<to = 1>(at_most_one)
    q_split = Reshape(q, split)
    asked_q = Slice(q_split, zeros, given, ones)
    asked_wide = Cast<to = 1>(asked_q)
    factor = Constant<value_float: float = @scale>()
    scaled = Mul(asked_wide, factor)
    k_split = Reshape(k, split)
    k_wide = Cast<to = 1>(k_split)
    q_heads = Transpose<perm = [0, 2, 1, 3]>(scaled)
    k_heads = Transpose<perm = [0, 2, 3, 1]>(k_wide)
    product = MatMul(q_heads, k_heads)
    log_size = Log(size)
    bias = Unsqueeze(log_size, middle)
    scores = Add(product, bias)
    shares = Softmax<axis = -1>(scores)
    given_size = Slice(query_size, zeros, given, ones)
    asked_size = Mul(given_size, any_asked)
    weight = Unsqueeze(asked_size, one_and_last)
    weighted = Mul(shares, weight)
    total = ReduceSum<keepdims = 0>(weighted, middle)
    weights = ReduceSum<keepdims = 1>(asked_size, last)
    heads_float = Cast<to = 1>(heads_list)
    all_weights = Mul(weights, heads_float)
    least = Constant<value_float = 1e-30>()
    divisor = Max(all_weights, least)
    importance = Div(total, divisor)
"""
