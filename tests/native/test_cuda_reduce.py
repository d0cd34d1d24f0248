"""Tests of the CUDA reducer on the CPU, compared with PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.native.cuda_host import interface, ops
from tests.native.cuda_host.library import needs_compiler
from tokenfold.models.reduction import slots as slotting

pytestmark = needs_compiler

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-3}
# Relative distance of neighbouring values: rounding nearly equal sums may differ by one step.
STEP = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
dtypes = st.sampled_from(list(TOLERANCE))


def check(
    x: Tensor, size: Tensor, slots: Tensor, width: int, trace: Tensor, offset: int = 0
) -> None:
    """Compare all outputs of the kernel with PyTorch's."""
    y, new_size, new_trace = ops.reduce(x, size, slots, width, trace, offset)
    expected, wanted_size = slotting.reduce(x, size, slots, width)
    torch.testing.assert_close(
        y.float(), expected.float(), rtol=STEP[x.dtype], atol=TOLERANCE[x.dtype]
    )
    assert torch.equal(new_size, wanted_size)
    assert torch.equal(new_trace, slotting.compose(trace, slots))
    for image in range(len(x)):
        members = (slots[image].unsqueeze(0) == torch.arange(width).unsqueeze(1)) & (
            size[image] > 0
        )
        for slot in (members.sum(1) == 1).nonzero().flatten().tolist():
            # Equal bit for bit, including the sign of zeros.
            alone = x[image, int(members[slot].nonzero())]
            assert torch.equal(y[image, slot].view(torch.uint8), alone.view(torch.uint8))
        assert not y[image, ~members.any(1)].any()


@settings(max_examples=120, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 70),
    dim=st.sampled_from([1, 3, 4, 5, 8, 12, 16, 24, 40, 136, 768]),
    share=st.floats(0.05, 1),
    offset=st.sampled_from([0, 0, 4, 8]),
    dtype=dtypes,
    seed=st.integers(0, 2**32 - 1),
)
def test_the_weighted_mean(
    batch: int, tokens: int, dim: int, share: float, offset: int, dtype: torch.dtype, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    width = max(1, int(share * tokens))
    x = torch.randn(batch, tokens, dim, generator=draw).to(dtype)
    x[torch.rand(x.shape, generator=draw) < 0.05] = -0.0
    size = torch.randint(0, 6, (batch, tokens), generator=draw).float()
    slots = torch.randint(-1, width, (batch, tokens), generator=draw)
    trace = torch.randint(-1, tokens, (batch, 2 * tokens), generator=draw)
    check(x, size, slots, width, trace, offset)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("tokens", "width", "dim"), [(197, 181, 384), (577, 300, 1024), (1024, 512, 768), (1025, 9, 8)]
)
def test_sizes_of_real_networks(tokens: int, width: int, dim: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(tokens)
    x = torch.randn(1, tokens, dim, generator=draw).to(dtype)
    size = torch.randint(1, 4, (1, tokens), generator=draw).float()
    slots = torch.cat([torch.arange(width), torch.randint(-1, width, (tokens - width,))])[None]
    check(x, size, slots, width, torch.arange(tokens)[None])


@pytest.mark.parametrize(("dim", "dtype"), [(8, torch.float16), (3, torch.float32)])
@pytest.mark.parametrize("batch", [90, 140])
def test_many_images(batch: int, dim: int, dtype: torch.dtype) -> None:
    # With many images, a warp has two or four slots.
    draw = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 50, dim, generator=draw).to(dtype)
    size = torch.randint(0, 4, (batch, 50), generator=draw).float()
    slots = torch.randint(-1, 37, (batch, 50), generator=draw)
    check(x, size, slots, 37, torch.arange(50).expand(batch, -1))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_single_tokens_are_copied_exactly(dtype: torch.dtype) -> None:
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    size = torch.rand(2, 9) + 0.1
    y, new_size, _ = ops.reduce(x, size, slotting.identity(2, 9), 9)
    assert torch.equal(y, x)
    assert torch.equal(new_size, size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_value_is_copied_exactly(dtype: torch.dtype) -> None:
    every = torch.arange(2**16).to(torch.uint16).view(dtype)
    numbers = every[every.isfinite()]
    x = numbers.reshape(1, -1, 256)
    y, _, _ = ops.reduce(x, torch.ones(x.shape[:2]), slotting.identity(1, x.shape[1]), x.shape[1])
    assert torch.equal(y.view(torch.int16), x.view(torch.int16))


def test_sums_are_computed_in_float32() -> None:
    # In float16, 4096 + 1 is 4096, and the sum of 4,096 values of 100 overflows.
    tokens = 4097
    x = torch.full((1, tokens, 8), 100.0, dtype=torch.float16)
    y, size, _ = ops.reduce(x, torch.ones(1, tokens), torch.zeros(1, tokens, dtype=torch.int64), 1)
    assert size.item() == tokens
    assert (y == 100).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_round_to_the_nearest_even(dtype: torch.dtype) -> None:
    # The mean of two neighbouring values lies exactly between them.
    low = torch.arange(0x3C00, 0x3D00).to(torch.int16).view(dtype)
    high = torch.arange(0x3C01, 0x3D01).to(torch.int16).view(dtype)
    x = torch.stack([low, high])[None]
    y, _, _ = ops.reduce(x, torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.int64), 1)
    assert torch.equal(y[0, 0], ((low.double() + high.double()) / 2).to(dtype))


def test_absent_tokens_may_hold_any_values() -> None:
    x = torch.ones(1, 4, 8)
    x[0, 1:3] = float("nan")
    size = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    slots = torch.tensor([[0, 0, 1, 2]])
    y, new_size, _ = ops.reduce(x, size, slots, 3)
    assert y[0, :, 0].tolist() == [1, 0, 1]
    assert new_size.tolist() == [[1, 0, 1]]


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_slots_out_of_range_drop_tokens_safely(tokens: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    wild = torch.tensor([-(2**63), -7, width, width + 1, 2**31, 2**32, 2**63 - 1])
    slots = torch.randint(0, max(width, 1), (1, tokens), generator=draw)
    slots = torch.where(
        torch.rand(1, tokens, generator=draw) < 0.5,
        wild[torch.randint(len(wild), (1, tokens), generator=draw)],
        slots,
    )
    trace = torch.cat([torch.arange(tokens), torch.tensor([tokens, 2**62, -1])])[None]
    x = torch.randn(1, tokens, 8, generator=draw)
    y, new_size, new_trace = ops.reduce(x, torch.ones(1, tokens), slots, width, trace)
    inside = torch.where((slots < 0) | (slots >= width), -1, slots)
    if width:
        expected, wanted_size = slotting.reduce(x, torch.ones(1, tokens), inside, width)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
        assert torch.equal(new_size, wanted_size)
    assert torch.equal(new_trace[:, :tokens], slots)
    assert new_trace[:, tokens:].tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "dim"),
    [(0, 3, 2, 8), (2, 0, 0, 8), (2, 0, 2, 8), (2, 3, 0, 8), (2, 3, 2, 0)],
)
def test_empty_tensors(batch: int, tokens: int, width: int, dim: int) -> None:
    slots = torch.zeros(batch, tokens, dtype=torch.int64)
    trace = torch.zeros(batch, 2, dtype=torch.int64)
    y, size, new_trace = ops.reduce(
        torch.ones(batch, tokens, dim), torch.ones(batch, tokens), slots, width, trace
    )
    assert y.shape == (batch, width, dim)
    if width:
        assert size.tolist() == [[tokens, 0][:width]] * batch
    assert new_trace.tolist() == [[0 if tokens else -1] * 2] * batch


def test_too_many_tokens_are_an_error() -> None:
    tokens = interface.MOST_REDUCE_TOKENS + 1
    slots = torch.zeros(1, tokens, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="reducing up to 32,768"):
        ops.reduce(torch.ones(1, tokens, 1), torch.ones(1, tokens), slots, 1)
