"""Slots: moving, composing and unmerging tokens."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenfold.models.reduction import slots as slotting


class Layer(NamedTuple):
    """Tokens of one layer, and their slots."""

    x: Tensor
    size: Tensor
    slots: Tensor
    width: int


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Draw random tokens; some absent (size 0), some dropped, some slots empty."""
    batch, tokens, dim = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 5))
    width = draw(st.integers(1, tokens))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(batch, tokens, dim, generator=random, dtype=torch.float64)
    size = torch.randint(0, 6, (batch, tokens), generator=random).float()
    slots = torch.randint(-1, width, (batch, tokens), generator=random)
    return Layer(x, size, slots, width)


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-5, atol=1e-6)


@given(layers())
def test_reduce_is_the_weighted_mean(layer: Layer) -> None:
    y, new_size = slotting.reduce(*layer)
    for b in range(len(layer.x)):
        for s in range(layer.width):
            members = [i for i in range(layer.x.shape[1]) if layer.slots[b, i] == s]
            total = sum(float(layer.size[b, i]) for i in members)
            assert new_size[b, s] == total
            mean = torch.zeros(layer.x.shape[2], dtype=torch.float64)
            for i in members:
                mean += layer.size[b, i] / max(total, 1.0) * layer.x[b, i]
            close(y[b, s], mean)


@given(layers())
def test_the_total_size_is_kept(layer: Layer) -> None:
    y, new_size = slotting.reduce(*layer)
    weight = layer.size * (layer.slots >= 0)
    close(new_size.sum(1), weight.sum(1))
    close((new_size.unsqueeze(-1) * y).sum(1), (weight.unsqueeze(-1) * layer.x).sum(1))


@given(layers())
def test_an_absent_token_changes_nothing(layer: Layer) -> None:
    y, new_size = slotting.reduce(*layer)
    absent = (layer.size == 0).unsqueeze(-1)
    other, other_size = slotting.reduce(
        torch.where(absent, 1e6, layer.x), layer.size, layer.slots, layer.width
    )
    assert torch.equal(y, other)
    assert torch.equal(new_size, other_size)


@given(layers(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_a_token_alone_in_its_slot_is_bit_identical(layer: Layer, dtype: torch.dtype) -> None:
    x = layer.x.to(dtype)
    y, _ = slotting.reduce(x, layer.size, layer.slots, layer.width)
    assert y.dtype == dtype
    for b in range(len(x)):
        for s in range(layer.width):
            present = (layer.slots[b] == s) & (layer.size[b] > 0)
            if int(present.sum()) == 1:
                assert torch.equal(y[b, s], x[b, int(present.nonzero())])
            if not present.any():
                assert not y[b, s].any()


def test_half_precision_sums_use_float32() -> None:
    # In float16 itself, 4096 + 1 is 4096, and 4096 values of 100 overflow.
    tokens = 4097
    x = torch.full((1, tokens, 1), 100.0, dtype=torch.float16)
    slots = torch.zeros(1, tokens, dtype=torch.int64)
    y, new_size = slotting.reduce(x, torch.ones(1, tokens), slots, 1)
    assert new_size.item() == tokens
    assert y.item() == 100.0


@given(layers(), st.data())
def test_two_layers_are_their_composition(layer: Layer, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, layer.width))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    second = torch.randint(-1, width, (len(layer.x), layer.width), generator=random)

    once, size_once = slotting.reduce(*layer)
    twice, size_twice = slotting.reduce(once, size_once, second, width)
    composed = slotting.compose(layer.slots, second)
    direct, size_direct = slotting.reduce(layer.x, layer.size, composed, width)
    close(twice, direct)
    close(size_twice, size_direct)


@given(layers())
def test_identity_is_neutral(layer: Layer) -> None:
    batch, tokens, _ = layer.x.shape
    nothing = slotting.identity(batch, tokens)
    assert torch.equal(slotting.compose(nothing, layer.slots), layer.slots)
    assert torch.equal(
        slotting.compose(layer.slots, slotting.identity(batch, layer.width)), layer.slots
    )
    y, size = slotting.reduce(layer.x, layer.size, nothing, tokens)
    present = (layer.size > 0).unsqueeze(-1)
    assert torch.equal(y, layer.x * present)
    assert torch.equal(size, layer.size)


@given(layers())
def test_unmerge_gives_each_token_the_value_of_its_group(layer: Layer) -> None:
    y, _ = slotting.reduce(*layer)
    back = slotting.unmerge(y, layer.slots)
    assert back.shape == layer.x.shape
    for b in range(len(y)):
        for i, slot in enumerate(layer.slots[b].tolist()):
            expected = torch.zeros_like(y[b, 0]) if slot < 0 else y[b, slot]
            assert torch.equal(back[b, i], expected)
    # Merging the unmerged tokens gives the same result again.
    again, _ = slotting.reduce(back, layer.size, layer.slots, layer.width)
    close(again, y)


@given(layers())
def test_source_matrix_matches_the_slots(layer: Layer) -> None:
    source = slotting.source(layer.slots, layer.width)
    assert source.dtype == torch.bool
    assert torch.equal(source.sum(1), (layer.slots >= 0).long())
    y, new_size = slotting.reduce(*layer)
    close(source.double() @ layer.size.double().unsqueeze(-1), new_size.unsqueeze(-1))
    total = source.double() @ (layer.size.unsqueeze(-1) * layer.x)
    close(new_size.unsqueeze(-1) * y, total)
    close(slotting.unmerge(y, layer.slots), source.double().transpose(1, 2) @ y)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_dropping_everything_leaves_zeros(tokens: int) -> None:
    slots = torch.full((1, tokens), slotting.DROPPED)
    y, size = slotting.reduce(torch.randn(1, tokens, 2), torch.ones(1, tokens), slots, 1)
    assert not y.any()
    assert not size.any()
    assert torch.equal(slotting.compose(slots, slotting.identity(1, 1)), slots)
