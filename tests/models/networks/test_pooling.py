"""Attention pooling: sizes count as tokens, and the FLOPs are those of torch's counter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokenfold.models.networks.operators import EAGER
from tokenfold.models.networks.pooling import AttentionPool, fixed_flops, per_token_flops

DIM, HEADS, MLP = 24, 3, 40


def pool() -> AttentionPool:
    layer = AttentionPool(DIM, HEADS, MLP, activation="gelu_tanh", eps=1e-6).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer


def tokens(count: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, count, DIM, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_pooling_matches_the_attention_of_torch() -> None:
    ours, x = pool(), tokens(7)
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    attended = theirs(ours.probe.expand(2, -1, -1), x, x)[0]
    expected = (attended + ours.mlp(ours.norm(attended)))[:, 0]
    torch.testing.assert_close(ours(x, None, EAGER), expected)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_a_token_of_size_n_counts_as_n_tokens(sizes: list[int]) -> None:
    ours, x = pool(), tokens(len(sizes))
    size = torch.tensor(sizes, dtype=torch.float32).expand(2, -1)
    with torch.no_grad():
        merged = ours(x, size, EAGER)
        single = ours(x.repeat_interleave(torch.tensor(sizes), dim=1), None, EAGER)
    torch.testing.assert_close(merged, single, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tokens_of_size_zero_are_ignored() -> None:
    ours, x = pool(), tokens(6)
    size = torch.tensor([2.0, 1, 0, 3, 0, 0]).expand(2, -1)
    kept = torch.tensor([0, 1, 3])
    torch.testing.assert_close(ours(x, size, EAGER), ours(x[:, kept], size[:, kept], EAGER))


@pytest.mark.parametrize("count", [1, 9, 40])
def test_flops_match_the_counter_of_torch(count: int) -> None:
    ours = pool()
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        ours(tokens(count, 1), None, EAGER)
    expected = fixed_flops(DIM, MLP) + count * per_token_flops(DIM)
    assert counter.get_total_flops() == 2 * expected
