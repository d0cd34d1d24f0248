"""Tests of the CUDA matchers on the CPU: their slots equal PyTorch's.

As in `test_ops`, random draws avoid near ties, and exact ties are drawn on purpose.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.native import test_ops, test_pumer_ops
from tests.native.cuda_host import interface, ops
from tests.native.cuda_host.library import needs_compiler
from tests.native.test_ops import MARGIN, MATCHERS, has_near_tie, matcher
from tokenfold.models.reduction.pumer import PuMer

Array = npt.NDArray[Any]

pytestmark = needs_compiler

KERNEL = {"MatchToMe": "match_tome", "MatchPiToMe": "match_pitome"}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def check(op: str, protected: int, heads: int, r: int, keys: torch.Tensor, size: Array) -> None:
    """Compare a kernel's slots with PyTorch's, unless rounding could change them."""
    x = np.zeros((*size.shape, 1), np.float32)
    # NumPy has no bfloat16; float32 represents all inputs exactly.
    case = test_ops.Case(op, protected, heads, r, keys.float().numpy(), x, size)
    assume(not has_near_tie(case, op, protected))
    actual = ops.match(
        KERNEL[op],
        keys,
        torch.from_numpy(case.feeds["size"]),
        r,
        heads=heads,
        protected=protected,
        margin=MARGIN,
    )
    np.testing.assert_array_equal(actual.numpy(), case.expected[0])


@pytest.mark.parametrize("op", MATCHERS)
@settings(max_examples=60, deadline=None)
@given(
    shape=test_ops.shapes,
    r=st.integers(0, 50),
    protected=st.integers(0, 2),
    largest_size=st.integers(1, 4),
    with_zeros=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_inputs_agree_with_pytorch(
    op: str,
    shape: tuple[int, int, int, int],
    r: int,
    protected: int,
    largest_size: int,
    with_zeros: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    batch, tokens, heads, head_dim = shape
    draw = np.random.default_rng(seed)
    keys = torch.from_numpy(draw.standard_normal((batch, tokens, heads * head_dim))).to(dtype)
    size = draw.integers(0 if with_zeros else 1, largest_size + 1, (batch, tokens))
    check(op, protected, heads, r, keys, size)


@pytest.mark.parametrize("op", MATCHERS)
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    r=st.integers(0, 50),
    protected=st.integers(0, 2),
    directions=st.lists(st.integers(0, 4), min_size=40, max_size=40),
    sizes=st.lists(st.integers(0, 2), min_size=40, max_size=40),
    dtype=st.sampled_from(DTYPES),
)
def test_ties_go_to_the_lowest_index(
    op: str,
    tokens: int,
    r: int,
    protected: int,
    directions: list[int],
    sizes: list[int],
    dtype: torch.dtype,
) -> None:
    # Axes and zero vectors: every cosine is exactly 0 or 1, so nearly everything is a tie.
    axes = torch.cat([torch.zeros(1, 4), 2 * torch.eye(4)]).to(dtype)
    keys = axes[torch.tensor(directions[:tokens])][None]
    check(op, protected, 1, r, keys, np.array(sizes[:tokens])[None])


@pytest.mark.parametrize("op", MATCHERS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 196, 197, 577, 1023, 1024])
def test_ties_at_the_sizes_of_real_networks(op: str, tokens: int) -> None:
    # 16 axes with both signs, so that several tiles contain equal cosines.
    draw = np.random.default_rng(tokens)
    axes = torch.cat([torch.eye(16), -torch.eye(16)])
    keys = axes[draw.integers(32, size=tokens)][None]
    size = torch.from_numpy(draw.integers(0, 3, (1, tokens))).float()
    for r in (0, 1, 16, tokens):
        expected_slots = matcher(op, 1)(keys, size, r)
        actual = ops.match(KERNEL[op], keys, size, r, heads=1, protected=1, margin=MARGIN)
        assert torch.equal(actual, expected_slots)


@pytest.mark.parametrize("op", MATCHERS)
@pytest.mark.parametrize("tokens", [197, 1024])
def test_random_inputs_of_real_sizes(op: str, tokens: int) -> None:
    draw = torch.Generator().manual_seed(tokens)
    keys = torch.randn(1, tokens, 128, generator=draw).half()
    size = torch.randint(1, 4, (1, tokens), generator=draw).float()
    metric = keys.float().unflatten(2, (2, -1)).mean(2)
    for r in (1, 16, tokens):
        reference_matcher = matcher(op, 1)
        expected_slots = reference_matcher(metric, size, r)
        actual = ops.match(KERNEL[op], keys, size, r, heads=2, protected=1, margin=MARGIN)
        assert sorted(set(actual[0].tolist())) == list(range(reference_matcher.width(tokens, r)))
        # Among half a million cosines some are nearly equal; see test_ops.
        if op == "MatchToMe" or r < tokens:
            assert (actual == expected_slots).float().mean() > 0.95


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(3, 40),
    heads=st.integers(1, 17),
    head_dim=st.sampled_from([1, 6, 8, 16, 20, 24, 32, 64, 72, 80, 96, 128, 256, 264]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_unit_metric(tokens: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, tokens, heads * head_dim, generator=draw).to(dtype)
    keys[:, tokens // 2] = keys[0, 0]
    actual = ops.unit_metric(keys, heads=heads)
    expected_slots = F.normalize(keys.float().unflatten(2, (heads, -1)).mean(2), dim=2)
    torch.testing.assert_close(actual[..., :head_dim], expected_slots, rtol=0, atol=1e-5)
    assert not actual[..., head_dim:].any()
    assert torch.equal(actual[:, tokens // 2], actual[0, 0].expand(2, -1))


@pytest.mark.parametrize("op", MATCHERS)
@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 30),
    r=st.integers(-3, 20),
    protected=st.integers(0, 2),
    share=st.floats(0, 1),
    value=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    seed=st.integers(0, 2**32 - 1),
)
def test_non_finite_values_give_valid_slots(
    op: str, tokens: int, r: int, protected: int, share: float, value: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, tokens, 8, generator=draw)
    keys[torch.rand(keys.shape, generator=draw) < share] = value
    size = torch.ones(1, tokens)
    slots = ops.match(KERNEL[op], keys, size, r, heads=2, protected=protected, margin=MARGIN)
    assert sorted(set(slots[0].tolist())) == list(range(matcher(op, protected).width(tokens, r)))
    assert slots[0, :protected].tolist() == list(range(min(protected, tokens)))


def check_pumer(case: test_pumer_ops.Case, heads: int, dtype: torch.dtype) -> None:
    """Compare the slots of `match_pumer` with PyTorch's."""
    tensors = {name: torch.from_numpy(array) for name, array in case.feeds.items()}
    actual = ops.match_pumer(
        tensors["keys"].to(dtype),
        tensors["size"],
        tensors["importance"],
        int(tensors["text"]),
        tensors["counts"].tolist(),
        heads=heads,
    )
    np.testing.assert_array_equal(actual.numpy(), case.out.trace.numpy()[:, :-1])


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 40),
    text=test_pumer_ops.counts_of_any_size,
    counts=test_pumer_ops.three_counts,
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([3, 8, 17]),
    levels=st.sampled_from([1, 4, 10_000]),
    smallest_size=st.integers(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_pumer_agrees_with_pytorch(
    batch: int,
    tokens: int,
    text: int,
    counts: tuple[int, int, int],
    heads: int,
    head_dim: int,
    levels: int,
    smallest_size: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    keys = torch.from_numpy(draw.standard_normal((batch, tokens, heads * head_dim))).to(dtype)
    case = test_pumer_ops.Case(
        heads,
        keys.float().numpy(),
        np.zeros((batch, tokens, 1), np.float32),
        draw.integers(smallest_size, 4, (batch, tokens)),
        (draw.integers(levels, size=(batch, tokens)) / levels).astype(np.float32),
        text,
        counts,
    )
    assume(not case.has_near_tie)
    check_pumer(case, heads, dtype)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    text=st.integers(0, 40),
    counts=test_pumer_ops.three_counts,
    directions=st.lists(st.integers(0, 4), min_size=40, max_size=40),
    sizes=st.lists(st.integers(0, 2), min_size=40, max_size=40),
    importances=st.lists(st.integers(0, 2), min_size=40, max_size=40),
)
def test_ties_of_pumer_go_to_the_lowest_index(
    tokens: int,
    text: int,
    counts: tuple[int, int, int],
    directions: list[int],
    sizes: list[int],
    importances: list[int],
) -> None:
    axes = np.concatenate([np.zeros((1, 4)), 2 * np.eye(4)]).astype(np.float32)
    case = test_pumer_ops.Case(
        1,
        axes[np.array(directions[:tokens])][None],
        np.zeros((1, tokens, 1), np.float32),
        np.array(sizes[:tokens])[None],
        np.array(importances[:tokens], np.float32)[None],
        text,
        counts,
    )
    check_pumer(case, 1, torch.float32)


@pytest.mark.parametrize(("words", "patches"), [(40, 145), (32, 577), (0, 1024), (1024, 0)])
def test_pumer_at_the_sizes_of_real_networks(words: int, patches: int) -> None:
    draw = np.random.default_rng(patches)
    tokens = words + patches
    keys = torch.eye(16)[draw.integers(16, size=tokens)][None]
    size = torch.ones(1, tokens)
    importance = torch.from_numpy(draw.random((1, tokens)).astype(np.float32))
    for counts in ((0, 0, 0), (patches // 10, patches // 3, words // 5), (tokens,) * 3):
        expected_slots = PuMer()(keys, size, importance, words, counts)
        actual = ops.match_pumer(keys, size, importance, words, counts, heads=1)
        assert torch.equal(actual, expected_slots)


@pytest.mark.parametrize("pruned", [0, 3])
def test_pumer_with_padded_images(pruned: int) -> None:
    # Some remaining patches are absent, so slots are reordered after merging.
    draw = np.random.default_rng(3)
    keys = torch.eye(8)[draw.integers(8, size=60)][None]
    importance = torch.from_numpy(draw.random((1, 60)).astype(np.float32))
    size = torch.from_numpy(draw.integers(0, 3, (1, 60))).float()
    for merged in (1, 5, 12):
        expected_slots = PuMer()(keys, size, importance, 10, (pruned, merged, 2))
        actual = ops.match_pumer(keys, size, importance, 10, (pruned, merged, 2), heads=1)
        assert torch.equal(actual, expected_slots)


@pytest.mark.parametrize("op", MATCHERS)
def test_too_many_tokens_are_an_error(op: str) -> None:
    tokens = interface.MOST_TOKENS + 1
    with pytest.raises(RuntimeError, match="too many tokens: matching takes up to 1,024"):
        ops.match(
            KERNEL[op],
            torch.zeros(1, tokens, 4),
            torch.ones(1, tokens),
            1,
            heads=1,
            protected=1,
        )
