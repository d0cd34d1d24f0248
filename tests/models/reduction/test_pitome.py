"""PiToMe's matching, compared with a loop written from the formulae, and its invariants."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tokenfold.bundle.workload import clamp
from tokenfold.models.reduction import slots as slotting
from tokenfold.models.reduction.pitome import STEPS, PiToMe, margin

ROUNDING = 0.5 / STEPS + 1e-6  # maximum rounding error of an energy
CLEAR = 2 * ROUNDING  # closer energies may rank either way


class Layer(NamedTuple):
    """Metric (B, N, C) and size (B, N) of one layer, number of tokens to remove, and matcher."""

    metric: Tensor
    size: Tensor
    r: int
    matcher: PiToMe


@st.composite
def layers(draw: st.DrawFn, *, absent: bool = True) -> Layer:
    batch, tokens, dim = draw(st.integers(1, 3)), draw(st.integers(1, 13)), draw(st.integers(2, 6))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    metric = torch.randn(batch, tokens, dim, generator=random, dtype=torch.float64)
    metric += draw(st.sampled_from([0.0, 1.0]))  # scattered or similar
    size = torch.randint(0 if absent else 1, 5, (batch, tokens), generator=random).float()
    matcher = PiToMe(draw(st.sampled_from([0.9, 0.45, 0.0])), draw(st.integers(0, 2)))
    return Layer(metric, size, draw(st.integers(0, tokens + 2)), matcher)


def cosine(a: Tensor, b: Tensor) -> float:
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else 0.0


def energies(metric: Tensor, size: Tensor, matcher: PiToMe) -> list[float]:
    """Return the energies of one image: the mean of ELU(cosine - margin) over the other tokens."""
    tokens = range(len(metric))
    candidates = [j for j in tokens if j >= matcher.protected and size[j] > 0]
    values = []
    for i in tokens:
        total = 0.0
        for j in candidates:
            if j != i:
                above = cosine(metric[i], metric[j]) - matcher.margin
                total += above if above > 0 else math.exp(above) - 1
        values.append(total / max(1, len(candidates)))
    return values


def looped(layer: Layer, image: int) -> list[int]:
    """Return the slots of one image, computed as in the paper."""
    metric, size, matcher = layer.metric[image], layer.size[image], layer.matcher
    tokens = len(metric)
    r = clamp(layer.r, tokens, matcher.protected)
    energy = energies(metric, size, matcher)
    # Absent tokens rank after all present ones, in order; protected tokens have no rank.
    ranked = sorted(
        range(min(matcher.protected, tokens), tokens),
        key=lambda i: (0.0, -energy[i], i) if size[i] > 0 else (1.0, 0.0, i),
    )
    sources, destinations = ranked[: 2 * r : 2], ranked[1 : 2 * r : 2]
    kept = [i for i in range(tokens) if i not in sources]
    slots = []
    for i in range(tokens):
        partner = i
        if i in sources:
            partner = min(
                destinations,
                key=lambda j: (size[j] == 0, -cosine(metric[i], metric[j]) * bool(size[j]), j),
            )
        slots.append(kept.index(partner))
    return slots


@given(layers())
def test_energies_match_the_loop(layer: Layer) -> None:
    metric, size, _, matcher = layer
    unit = torch.nn.functional.normalize(metric, dim=-1)
    ours = matcher._energy(unit @ unit.transpose(1, 2), size)
    for b in range(len(metric)):
        expected = energies(metric[b], size[b], matcher)
        for i in range(metric.shape[1]):
            if i >= matcher.protected and size[b, i] > 0:
                assert float(ours[b, i]) == pytest.approx(expected[i], abs=ROUNDING)
                assert ours[b, i] > -1
            else:
                assert ours[b, i] < -1  # below the energy of any token that may merge


@given(layers())
def test_slots_match_the_loop(layer: Layer) -> None:
    metric, size, r, matcher = layer
    slots = matcher(metric, size, r)
    assert slots.dtype == torch.int64
    for b in range(len(metric)):
        energy = energies(metric[b], size[b], matcher)
        candidates = [
            energy[i] for i in range(len(energy)) if i >= matcher.protected and size[b, i] > 0
        ]
        gaps = [abs(x - y) for index, x in enumerate(candidates) for y in candidates[:index]]
        assume(all(gap == 0 or gap > CLEAR for gap in gaps))
        if clamp(r, metric.shape[1], matcher.protected) == 0:
            assert slots[b].tolist() == list(range(metric.shape[1]))
        else:
            assert slots[b].tolist() == looped(layer, b)


@given(layers())
def test_slots_are_valid(layer: Layer) -> None:
    metric, size, r, matcher = layer
    tokens = metric.shape[1]
    width = matcher.width(tokens, r)
    assert width == tokens - max(0, min(r, (tokens - matcher.protected) // 2))
    for row in matcher(metric, size, r).tolist():
        assert sorted(set(row)) == list(range(width))
        for token in range(min(matcher.protected, tokens)):
            assert row.count(token) == 1
            assert row[token] == token


@given(layers())
def test_merging_keeps_the_total_size(layer: Layer) -> None:
    metric, size, r, matcher = layer
    width = matcher.width(metric.shape[1], r)
    y, new_size = slotting.reduce(metric, size, matcher(metric, size, r), width)
    assert torch.equal(new_size.sum(1), size.sum(1))
    torch.testing.assert_close(
        (new_size.unsqueeze(-1) * y).sum(1),
        (size.unsqueeze(-1) * metric).sum(1),
        rtol=1e-5,
        atol=1e-5,
    )


@given(layers())
def test_absent_tokens_do_not_change_present_ones(layer: Layer) -> None:
    metric, size, r, matcher = layer
    slots = matcher(metric, size, r)
    other = torch.where((size == 0).unsqueeze(-1), torch.randn_like(metric), metric)
    disturbed = matcher(other, size, r)
    assert torch.equal(slots[size > 0], disturbed[size > 0])


@given(layers(absent=False), st.integers(1, 5))
def test_padding_changes_nothing(layer: Layer, padding: int) -> None:
    metric, size, r, matcher = layer
    batch, tokens, dim = metric.shape
    r = clamp(r, tokens, matcher.protected)
    padding_metric = torch.randn(batch, padding, dim, dtype=metric.dtype)
    padded = matcher(
        torch.cat([metric, padding_metric], 1), torch.cat([size, torch.zeros(batch, padding)], 1), r
    )
    slots = matcher(metric, size, r)
    # Tokens keep their order, so even the slots are the same.
    assert torch.equal(slots, padded[:, :tokens])


@pytest.mark.parametrize("protected", [0, 1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("r", [0, 1, 9])
def test_the_smallest_networks(protected: int, tokens: int, r: int) -> None:
    slots = PiToMe(0.5, protected)(torch.ones(2, tokens, 4), torch.ones(2, tokens), r)
    expected = list(range(tokens))
    if r and tokens - protected >= 2:
        # The first unprotected token merges into the second.
        expected = {(3, 0): [0, 0, 1], (3, 1): [0, 1, 1], (2, 0): [0, 0]}[(tokens, protected)]
    assert slots.tolist() == [expected, expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zero_vectors_give_no_nan(dtype: torch.dtype) -> None:
    metric, size = torch.zeros(1, 9, 4, dtype=dtype), torch.ones(1, 9)
    matcher = PiToMe(0.5)
    slots = matcher(metric, size, 3)
    assert sorted(set(slots[0].tolist())) == list(range(6))
    y, new_size = slotting.reduce(metric, size, slots, 6)
    assert not y.any()
    assert new_size.sum() == 9


def test_ties_go_to_the_lowest_index() -> None:
    # The tokens are equal, and with a margin of 0.5 all energies are exactly equal.
    same = torch.zeros(1, 9, 3)
    same[..., 0] = 2.0
    slots = PiToMe(0.5)(same, torch.ones(1, 9), 3)
    # The ranking is 1, 2, 3 and so on, so tokens 1, 3 and 5 merge into token 2.
    assert slots.tolist() == [[0, 1, 1, 1, 2, 1, 3, 4, 5]]


def test_isolated_tokens_are_protected() -> None:
    # Four equal tokens and two isolated ones; with r = 2, only the equal ones merge.
    metric = torch.eye(4)[[0, 1, 1, 2, 1, 3, 1]].unsqueeze(0)
    slots = PiToMe(0.9)(metric, torch.ones(1, 7), 2)[0].tolist()
    assert [slots.count(slots[i]) for i in (0, 3, 5)] == [1, 1, 1]
    assert len(set(slots)) == 5


def test_the_papers_margins() -> None:
    assert [margin(layer, 3) for layer in range(3)] == pytest.approx([0.9, 0.6, 0.3])
