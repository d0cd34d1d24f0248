"""Attention and importance on CUDA, compiled for this machine's processor, against PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.native.cuda_host import attend_ops, interface, library, ops
from tests.native.cuda_host.library import needs_compiler
from tokenfold.models.networks.operators import EagerOperators

pytestmark = needs_compiler

# Of the largest value of an image's output.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = list(TOLERANCE)
# Absent tokens, merged ones, one that counts a little.
SIZES = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 7.0, 0.3])


def inputs(
    batch: int, queries: int, tokens: int, channels: int, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and size; some token of each image is present."""
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, queries, channels, generator=draw).to(dtype)
    k, v = (torch.randn(batch, tokens, channels, generator=draw).to(dtype) for _ in range(2))
    size = SIZES[torch.randint(len(SIZES), (batch, tokens), generator=draw)]
    present = torch.randint(tokens, (batch, 1), generator=draw)
    return q, k, v, size.scatter(1, present, 1.0)


def wanted(q: Tensor, k: Tensor, v: Tensor, size: Tensor, heads: int) -> Tensor:
    """In float64."""
    return EagerOperators().attend(q.double(), k.double(), v.double(), size.double(), heads)


def check(q: Tensor, k: Tensor, v: Tensor, size: Tensor, heads: int, **how: Any) -> None:
    out = attend_ops.attend(q, k, v, size, heads=heads, **how)
    reference = wanted(q, k, v, size, heads)
    scale = reference.abs().amax((1, 2), keepdim=True)
    assert ((out.double() - reference).abs() <= TOLERANCE[q.dtype] * scale).all()


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    queries=st.integers(1, 40),
    tokens=st.integers(1, 150),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16, 24, 32, 64, 72, 80, 96, 128]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_with_sizes(
    batch: int,
    queries: int,
    tokens: int,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    check(*inputs(batch, queries, tokens, heads * head_dim, dtype, seed), heads)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 70),
    heads=st.integers(1, 2),
    head_dim=st.sampled_from([1, 5, 12, 63, 65, 130, 200, 256]),
    gaps=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    offset=st.sampled_from([0, 4, 8]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_heads_and_rows_that_tensor_cores_cannot_read(
    tokens: int,
    heads: int,
    head_dim: int,
    gaps: tuple[int, int, int],
    offset: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    given_ = inputs(1, 33, tokens, heads * head_dim, dtype, seed)
    check(*given_, heads, gaps=gaps, offset=offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "tokens", "heads", "head_dim"),
    [(197, 197, 1, 64), (181, 181, 1, 64), (17, 578, 1, 64), (50, 11, 2, 96), (257, 257, 1, 80)],
)
def test_sizes_of_real_networks(
    queries: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    check(*inputs(1, queries, tokens, heads * head_dim, dtype, tokens), heads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_one_packed_tensor(dtype: torch.dtype) -> None:
    heads, channels = 2, 128
    given_ = inputs(2, 21, 21, channels, dtype, 0)
    check(*given_, heads, gaps=(2 * channels, 2 * channels, 16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_absent_tokens_may_hold_anything(dtype: torch.dtype, bad: float) -> None:
    q, k, v, size = inputs(2, 20, 90, 64, dtype, 1)
    k[size == 0], v[size == 0] = bad, bad
    harmless = k.masked_fill(size.unsqueeze(-1) == 0, 0), v.masked_fill(size.unsqueeze(-1) == 0, 0)
    found = attend_ops.attend(q, k, v, size, heads=1)
    assert torch.equal(found, attend_ops.attend(q, *harmless, size, heads=1))
    assert found.isfinite().all()
    important = attend_ops.importance(q, k, size, torch.ones(2, 20), 20, heads=1)
    assert important.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("queries", "tokens"), [(41, 70), (18, 260)])
def test_an_image_gives_the_same_bits_in_any_batch(
    queries: int, tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the batch has enough blocks for warps of 32 queries. 260 keys are shared by two warps.
    monkeypatch.setattr("tests.native.cuda_host.attend_ops.ORDERS", ops.ORDERS[:1])
    batch, heads = 12, 22
    q, k, v, size = inputs(batch, queries, tokens, heads * 64, dtype, tokens)
    # Origins move late, and for the first 16 queries of 32 only.
    q[:, :16] *= 10
    for images, kernel in ((batch, b"64x32"), (1, b"64x16")):
        of = attending(batch=images, queries=queries, tokens=tokens, heads=heads)
        assert library.prepare("attend", of)[1].kernel.endswith(kernel)
    found = attend_ops.attend(q, k, v, size, heads=heads)
    for image in (0, 7):
        own = slice(image, image + 1)
        alone = attend_ops.attend(q[own], k[own], v[own], size[own], heads=heads)
        assert torch.equal(found[own], alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_without_tokens_gives_zeros(dtype: torch.dtype) -> None:
    q, k, v, size = inputs(2, 20, 70, 64, dtype, 2)
    size[0] = 0
    out = attend_ops.attend(q, k, v, size, heads=2)
    assert not out[0].any()
    assert out[1].any()
    important = attend_ops.importance(q, k, size, torch.ones(2, 20), 20, heads=2)
    assert not important[0].any()
    assert important[1].sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_any_magnitude(dtype: torch.dtype) -> None:
    # A later, higher score leaves nothing of all before it.
    q, k, v, _ = inputs(1, 18, 130, 64, dtype, 3)
    k[0, 100] = 30 * q[0, 7]
    check(30 * q, k, v, torch.ones(1, 130), 1)
    check(-30 * q, k, v, torch.ones(1, 130), 1)


def test_one_launch_may_be_of_any_length() -> None:
    check(*inputs(1, 3, 3000, 32, torch.float16, 4), 1)
    check(*inputs(1, 3, 3000, 32, torch.float32, 4), 1)


@pytest.mark.parametrize(("batch", "queries", "tokens"), [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
def test_empty_tensors(batch: int, queries: int, tokens: int) -> None:
    q, k = torch.ones(batch, queries, 64), torch.ones(batch, tokens, 64)
    for dtype in DTYPES:
        out = attend_ops.attend(
            q.to(dtype), k.to(dtype), k.to(dtype), torch.ones(batch, tokens), heads=1
        )
        assert out.shape == q.shape
        assert not out.any()
    sizes = torch.ones(batch, tokens), torch.ones(batch, queries)
    out = attend_ops.importance(q, k, *sizes, 3, heads=1)
    assert out.shape == (batch, tokens)
    assert not out.any() or queries


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 70),
    tokens=st.integers(1, 200),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 12, 32, 64, 72, 200, 256]),
    gaps=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_importance_of_tokens(
    queries: int,
    tokens: int,
    heads: int,
    head_dim: int,
    gaps: tuple[int, int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    q, k, _, size = inputs(2, queries, tokens, heads * head_dim, dtype, seed)
    draw = torch.Generator().manual_seed(seed)
    query_size = torch.randint(3, (2, queries), generator=draw).float()
    # What a query holds that does not count may be anything.
    q[query_size == 0] = float("nan")
    asked = int(torch.randint(-1, queries + 9, (), generator=draw))
    found = attend_ops.importance(q, k, size, query_size, asked, heads=heads, gaps=gaps)
    count = min(max(asked, 0), queries)
    known = q.masked_fill(query_size.unsqueeze(-1) == 0, 0)
    reference = EagerOperators().importance(known, k, size, query_size, count, heads)
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-6)
    assert not found[size == 0].any()


def attending(**given: Any) -> interface.Attend:
    """Arguments that are in order, but for what is given."""
    of = interface.Attend(type=1, batch=2, queries=197, tokens=197, heads=12, head_dim=64, scale=1)
    of.q = of.k = of.v = of.size = of.out = 4096
    for name, value in given.items():
        setattr(of, name, value)
    return of


def rating(**given: Any) -> interface.Importance:
    of = interface.Importance(type=1, batch=2, queries=40, tokens=185, heads=12, head_dim=64)
    of.q = of.k = of.size = of.query_size = of.importance = of.workspace = 4096
    of.asked, of.workspace_bytes = 40, 2 * 12 * 185 * 4
    for name, value in given.items():
        setattr(of, name, value)
    return of


@pytest.mark.parametrize(
    ("given_", "kernel"),
    [
        ({}, "float16_64x16"),
        ({"type": 2}, "bfloat16_64x16"),
        ({"type": 0}, "plain_1"),
        ({"head_dim": 16}, "float16_32x16"),
        ({"head_dim": 72}, "float16_80x16"),
        ({"head_dim": 88}, "float16_96x16"),
        ({"head_dim": 128, "type": 2}, "bfloat16_128x16"),
        ({"head_dim": 136}, "plain_4"),
        ({"head_dim": 100}, "plain_2"),
        ({"q": 4104}, "plain_1"),
        ({"out": 4098}, "plain_1"),
        ({"v_stride": 772}, "plain_1"),
        ({"scale": 0}, "plain_1"),
        ({"scale": -1}, "plain_1"),
        ({"v_stride": 3 * 768}, "float16_64x16"),
        # 12 heads of two blocks an image where a block has 4 warps of 32 queries.
        ({"batch": 10}, "float16_64x16"),
        ({"batch": 11}, "float16_64x32"),
        ({"batch": 2**20, "heads": 1, "type": 2}, "bfloat16_64x32"),
        ({"batch": 21, "queries": 40, "tokens": 577}, "float16_64x16"),
        ({"batch": 22, "queries": 40, "tokens": 577}, "float16_64x32"),
        ({"batch": 128, "head_dim": 32}, "float16_32x16"),
        ({"batch": 128, "head_dim": 72}, "float16_80x16"),
    ],
)
def test_what_tensor_cores_can_read_they_do(given_: dict[str, Any], kernel: str) -> None:
    code, launch = library.prepare("attend", attending(**given_))
    assert code == interface.OK
    assert launch.kernel.decode() == f"tokenfold_attend_{kernel}"


@given(
    batch=st.integers(1, 200),
    queries=st.integers(1, 2000),
    heads=st.integers(1, 32),
    head_dim=st.integers(1, 256),
    type_=st.integers(0, 2),
)
def test_every_query_has_its_warp(
    batch: int, queries: int, heads: int, head_dim: int, type_: int
) -> None:
    of = attending(batch=batch, queries=queries, heads=heads, head_dim=head_dim, type=type_)
    code, launch = library.prepare("attend", of)
    assert code == interface.OK
    assert launch.blocks % (batch * heads) == 0
    tiles, warps = launch.blocks // (batch * heads), launch.threads // 32
    each = 8 if b"plain" in launch.kernel else int(launch.kernel.split(b"x")[-1])
    # No block is without a query.
    assert (tiles - 1) * warps * each < queries <= tiles * warps * each
    assert launch.threads <= 256
    # All that a block may ask for on sm_75.
    assert launch.shared_bytes <= 64 * 1024


def test_few_queries_share_their_keys_among_warps() -> None:
    # Two warps for three rows of 16 queries, or for two of 32.
    for batch, warps in ((1, 2 * 3), (128, 2 * 2)):
        of = attending(batch=batch, queries=40, tokens=577)
        _, launch = library.prepare("attend", of)
        assert launch.blocks * launch.threads // 32 == batch * 12 * warps
    _, launch = library.prepare("attend", attending(queries=40, tokens=255))
    assert launch.blocks * launch.threads // 32 == 2 * 12 * 4


@given(head_dim=st.integers(1, 256), asked=st.integers(-3, 300))
def test_importance_fits_every_architecture(head_dim: int, asked: int) -> None:
    of = rating(head_dim=head_dim, asked=asked, queries=200)
    code, launch = library.prepare("importance_heads", of)
    assert code == interface.OK
    assert launch.blocks == (24 if asked > 0 else 0)
    assert launch.shared_bytes <= 48 * 1024
    assert launch.threads <= 256
    assert library.prepare("importance_mean", of)[1].blocks == 2 * 2


def test_one_image_keeps_a_large_gpu_busy() -> None:
    _, launch = library.prepare("attend", attending(batch=1))
    assert launch.blocks >= 84
    _, launch = library.prepare("attend", attending(batch=128))
    assert launch.threads == 4 * 32
    assert launch.blocks == 128 * 12 * 2


HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("given_", "code"),
    [
        ({"type": 3}, interface.BAD_TYPE),
        ({"queries": -1}, interface.BAD_SHAPE),
        ({"tokens": HUGE}, interface.BAD_SHAPE),
        ({"heads": 0}, interface.BAD_SHAPE),
        ({"head_dim": 257}, interface.HEAD_TOO_WIDE),
        ({"head_dim": 0}, interface.BAD_SHAPE),
        ({"q_stride": 767}, interface.BAD_SHAPE),
        ({"k_stride": HUGE}, interface.BAD_SHAPE),
        ({"k_stride": 2**26 + 8}, interface.BAD_SHAPE),
        ({"batch": 2**31}, interface.BATCH_TOO_LARGE),
        ({"batch": 2**30}, interface.BATCH_TOO_LARGE),
        ({"q": None}, interface.NO_POINTER),
        ({"size": None}, interface.NO_POINTER),
        ({"k": 4097}, interface.MISALIGNED),
        ({"size": 4098}, interface.MISALIGNED),
    ],
)
def test_both_refuse_what_they_cannot_do(given_: dict[str, Any], code: int) -> None:
    assert library.prepare("attend", attending(**given_))[0] == code
    for launch in ("importance_heads", "importance_mean"):
        assert library.prepare(launch, rating(**given_))[0] == code


def test_importance_wants_its_workspace() -> None:
    needed = 2 * 12 * 185 * 4
    assert attend_ops.importance_bytes(2, 185, 12) == needed
    for shape in ((-1, 2, 2), (2, HUGE, 2), (2, 2, 0)):
        assert attend_ops.importance_bytes(*shape) == 0
    for given_ in ({"workspace": None}, {"workspace_bytes": needed - 1}, {"workspace": 4104}):
        of = rating(**given_)
        assert library.prepare("importance_heads", of)[0] == interface.BAD_WORKSPACE
    assert library.prepare("importance_heads", rating(importance=None))[0] == interface.NO_POINTER
    assert library.prepare("attend", attending(out=None))[0] == interface.NO_POINTER


def test_nothing_to_do_launches_nothing() -> None:
    for given_ in ({"batch": 0}, {"queries": 0}):
        assert library.prepare("attend", attending(**given_))[1].blocks == 0
    for given_ in ({"batch": 0}, {"tokens": 0}):
        library.run("importance", rating(**given_))
