"""ToMe's matching, compared with a loop written from the formulae, and its invariants."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.models.reduction.tome_variants import KthToMe, RandomToMe
from tokenfold.bundle.workload import clamp
from tokenfold.models.reduction import slots as slotting
from tokenfold.models.reduction.tome import ToMe

MATCHERS = (ToMe(), ToMe(class_token=False), ToMe(distill_token=True))


class Tokens(NamedTuple):
    """Metric (B, N, C) and size (B, N) of one layer, and the number of tokens to remove."""

    metric: Tensor
    size: Tensor
    r: int


@st.composite
def layers(draw: st.DrawFn, *, max_tokens: int = 14, absent: bool = True) -> Tokens:
    """Draw random tokens, in every third example with many exact ties and zero vectors."""
    batch, tokens, dim = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, max_tokens)),
        draw(st.integers(2, 6)),
    )
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    metric = torch.randn(batch, tokens, dim, generator=random, dtype=torch.float64)
    if draw(st.integers(0, 2)) == 0:
        # Vectors along the axes, and zeros, so that every cosine is exactly -1, 0 or 1.
        axis = torch.randint(0, dim, (batch, tokens), generator=random)
        sign = torch.randint(-1, 2, (batch, tokens, 1), generator=random)
        metric = torch.nn.functional.one_hot(axis, dim).double() * sign
    size = torch.randint(0 if absent else 1, 5, (batch, tokens), generator=random).float()
    return Tokens(metric, size, draw(st.integers(0, tokens + 2)))


def cosine(a: Tensor, b: Tensor) -> float:
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else 0.0


def looped(metric: Tensor, size: Tensor, r: int, matcher: ToMe) -> list[int]:
    """Return the slots of one image, computed as in the paper."""
    tokens = len(metric)
    r = clamp(r, tokens, matcher.protected)
    if r == 0:
        return list(range(tokens))
    sources, destinations = range(0, tokens, 2), range(1, tokens, 2)
    best: dict[int, tuple[float, int]] = {}
    for a in sources:
        scores = []
        for b in destinations:
            score = cosine(metric[a], metric[b])
            if size[b] == 0:
                score = -2.0
            if matcher.distill_token and b == 1:
                score = -3.0
            scores.append((score, b))
        score, partner = max(scores, key=lambda candidate: (candidate[0], -candidate[1]))
        if size[a] == 0:
            score = -2.0
        if matcher.class_token and a == 0:
            score = -3.0
        best[a] = (score, partner)
    ranked = sorted(sources, key=lambda a: (-best[a][0], a))
    merged, kept = ranked[:r], ranked[r:]
    if matcher.class_token:
        kept = sorted(kept)
    if matcher.distill_token:
        order = [0, 1, *kept[1:], *destinations[1:]]
    else:
        order = [*kept, *destinations]
    groups = [[token, *(a for a in merged if best[a][1] == token)] for token in order]
    groups.sort(key=lambda group: all(size[token] == 0 for token in group))  # absent tokens last
    place = {token: slot for slot, group in enumerate(groups) for token in group}
    return [place[i] for i in range(tokens)]


@given(layers(), st.sampled_from(MATCHERS))
def test_slots_match_the_loop(layer: Tokens, matcher: ToMe) -> None:
    metric, size, r = layer
    slots = matcher(metric, size, r)
    assert slots.dtype == torch.int64
    for b in range(len(metric)):
        assert slots[b].tolist() == looped(metric[b], size[b], r, matcher)


@given(layers(), st.sampled_from(MATCHERS))
def test_slots_are_valid(layer: Tokens, matcher: ToMe) -> None:
    metric, size, r = layer
    tokens = metric.shape[1]
    width = matcher.width(tokens, r)
    assert width == tokens - max(0, min(r, (tokens - matcher.protected) // 2))
    for row in matcher(metric, size, r).tolist():
        assert sorted(set(row)) == list(range(width))


@given(layers(), st.sampled_from(MATCHERS))
def test_merging_keeps_the_total_size(layer: Tokens, matcher: ToMe) -> None:
    metric, size, r = layer
    x = metric
    y, new_size = slotting.reduce(x, size, matcher(metric, size, r), matcher.width(x.shape[1], r))
    assert torch.equal(new_size.sum(1), size.sum(1))
    torch.testing.assert_close(
        (new_size.unsqueeze(-1) * y).sum(1), (size.unsqueeze(-1) * x).sum(1), rtol=1e-5, atol=1e-5
    )


@given(layers(), st.sampled_from([ToMe(), ToMe(distill_token=True)]))
def test_protected_tokens_stay_alone_and_in_front(layer: Tokens, matcher: ToMe) -> None:
    metric, size, r = layer
    assume(metric.shape[1] >= matcher.protected)
    size[:, : matcher.protected].clamp_(min=1)  # protected tokens are always present
    slots = matcher(metric, size, r)
    for token in range(matcher.protected):
        assert torch.equal(
            slots == token, (torch.arange(metric.shape[1]) == token).expand_as(slots)
        )


@given(layers(), st.sampled_from(MATCHERS))
def test_absent_tokens_do_not_change_present_ones(layer: Tokens, matcher: ToMe) -> None:
    metric, size, r = layer
    slots = matcher(metric, size, r)
    other = torch.randn_like(metric)
    disturbed = matcher(torch.where((size == 0).unsqueeze(-1), other, metric), size, r)
    assert torch.equal(slots[size > 0], disturbed[size > 0])


@given(layers(absent=False), st.sampled_from(MATCHERS))
def test_unpadded_matchers_skip_the_check_for_absent_tokens(layer: Tokens, matcher: ToMe) -> None:
    unpadded_matcher = replace(matcher, padded=False)
    assert torch.equal(unpadded_matcher(*layer), matcher(*layer))


@given(layers(absent=False), st.sampled_from(MATCHERS), st.integers(1, 5))
def test_padding_changes_nothing(layer: Tokens, matcher: ToMe, padding: int) -> None:
    metric, size, r = layer
    batch, tokens, dim = metric.shape
    r = clamp(r, tokens, matcher.protected)
    padding_metric = torch.randn(batch, padding, dim, dtype=metric.dtype)
    padded_metric = torch.cat([metric, padding_metric], 1)
    padded_size = torch.cat([size, torch.zeros(batch, padding)], 1)

    slots, padded = matcher(metric, size, r), matcher(padded_metric, padded_size, r)
    y, new_size = slotting.reduce(metric, size, slots, tokens - r)
    z, padded_new_size = slotting.reduce(padded_metric, padded_size, padded, tokens + padding - r)
    assert torch.equal(slots, padded[:, :tokens])
    assert torch.equal(slotting.unmerge(y, slots), slotting.unmerge(z, padded)[:, :tokens])
    sizes = slotting.unmerge(new_size.unsqueeze(-1), slots)
    padded_sizes = slotting.unmerge(padded_new_size.unsqueeze(-1), padded)
    assert torch.equal(sizes, padded_sizes[:, :tokens])


@given(layers(), st.sampled_from(MATCHERS))
def test_images_of_a_batch_are_independent(layer: Tokens, matcher: ToMe) -> None:
    metric, size, r = layer
    slots = matcher(metric, size, r)
    for b in range(len(metric)):
        assert torch.equal(slots[b : b + 1], matcher(metric[b : b + 1], size[b : b + 1], r))


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("r", [0, 1, 9])
def test_the_smallest_networks(matcher: ToMe, tokens: int, r: int) -> None:
    metric, size = torch.ones(2, tokens, 4), torch.ones(2, tokens)
    slots = matcher(metric, size, r)
    expected = {1: [0], 2: [0, 1], 3: [0, 1, 2]}[tokens]
    if r and tokens == 3 and not matcher.distill_token:
        # The class token stays; without one, the lowest index merges.
        expected = [0, 1, 1] if matcher.class_token else [1, 1, 0]
    if r and tokens == 2 and not matcher.class_token:
        expected = [0, 0]
    assert slots.tolist() == [expected, expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zero_vectors_give_no_nan(dtype: torch.dtype) -> None:
    metric, size = torch.zeros(1, 9, 4, dtype=dtype), torch.ones(1, 9)
    slots = ToMe()(metric, size, 3)
    # All cosines are 0, so the first sources, 2, 4 and 6, merge into the first destination, 1.
    assert slots.tolist() == [[0, 2, 2, 3, 2, 4, 2, 5, 1]]
    y, _ = slotting.reduce(metric, size, slots, 6)
    assert not y.any()


def test_ties_go_to_the_lowest_index() -> None:
    same = torch.ones(1, 8, 3)
    assert ToMe()(same, torch.ones(1, 8), 2).tolist() == [[0, 2, 2, 3, 2, 4, 1, 5]]
    assert ToMe(class_token=False)(same, torch.ones(1, 8), 2).tolist() == [[2, 2, 2, 3, 0, 4, 1, 5]]


def test_many_ties_go_to_the_lowest_index() -> None:
    # Sorting may switch to a method that does not keep the order of equals.
    slots = ToMe()(torch.ones(1, 1001, 2), torch.ones(1, 1001), 100)[0]
    assert (slots[2:202:2] == slots[1]).all()
    assert slots.unique().numel() == 901
    assert slots[202:1001:2].tolist() == list(range(1, 401))


def test_a_distillation_token_needs_a_class_token() -> None:
    with pytest.raises(ValueError, match="class token"):
        ToMe(class_token=False, distill_token=True)


@given(layers(), st.integers(1, 5))
def test_every_kth_token_is_a_destination(layer: Tokens, k: int) -> None:
    metric, size, r = layer
    tokens = metric.shape[1]
    matcher = KthToMe(k)
    slots = matcher(metric, size, r)
    groups = tokens // k
    assert matcher.width(tokens, r) == groups
    for b in range(len(metric)):
        for i in range(tokens):
            if i >= groups * k:  # the tail
                assert slots[b, i] == slotting.DROPPED
            elif i % k == k - 1:
                assert slots[b, i] == i // k
            else:
                scores = [
                    cosine(metric[b, i], metric[b, j]) if size[b, j] else -2.0
                    for j in range(k - 1, groups * k, k)
                ]
                assert slots[b, i] == scores.index(max(scores))


def test_kth_needs_a_positive_k() -> None:
    with pytest.raises(ValueError, match="k is 0; it must be 1 or more"):
        KthToMe(0)


@given(layers(), st.integers(0, 2**32))
def test_random_sources_merge_into_their_best(layer: Tokens, seed: int) -> None:
    metric, size, r = layer
    batch, tokens, _ = metric.shape
    matcher = RandomToMe(torch.Generator().manual_seed(seed))
    slots = matcher(metric, size, r)
    width = matcher.width(tokens, r)
    assert width == max(1, tokens - r)
    draws = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed))
    for b in range(batch):
        order = draws[b].argsort(descending=True).tolist()
        if width == tokens:
            order = []  # nothing is drawn when nothing merges
        sources = set(order[: tokens - width])
        others = [i for i in range(tokens) if i not in sources]
        for i in range(tokens):
            partner = i
            if i in sources:
                scores = [
                    cosine(metric[b, i], metric[b, j]) if size[b, j] else -2.0 for j in others
                ]
                partner = others[scores.index(max(scores))]
            assert slots[b, i] == others.index(partner)


def test_random_sources_differ_from_draw_to_draw() -> None:
    metric = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(0))
    matcher = RandomToMe(torch.Generator().manual_seed(0))
    draws = {tuple(matcher(metric, torch.ones(1, 40), 20)[0].tolist()) for _ in range(5)}
    assert len(draws) == 5
