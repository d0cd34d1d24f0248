"""What the plugins for TensorRT compute, run on this machine's processor by what plays TensorRT."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import Tensor

from tests.native import test_cuda_attend, test_cuda_ops, test_ops, test_pumer_ops
from tests.native.cuda_host import tensorrt_ops
from tests.native.cuda_host.library import needs_compiler
from tests.native.test_ops import MARGIN, MATCHERS, has_near_tie
from tests.native.test_pumer_ops import HUGE, counts_of_any_size, three_counts
from tokenfold.export.ops.functions import EXACT, PLUGIN_ATTRIBUTES
from tokenfold.models.networks.operators import EAGER

pytestmark = needs_compiler

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = dict(zip(test_cuda_ops.KINDS, DTYPES, strict=True))
COUNTS = {"r", "queries", "text", "counts"}


def through_plugins(graph: str, kind: str, feeds: test_cuda_ops.Feeds) -> dict[str, Tensor]:
    """All that a graph of `test_cuda_ops` computes."""
    values = {name: torch.from_numpy(array) for name, array in feeds.items()}
    for name in values.keys() & test_cuda_ops.ROUNDED:
        values[name] = values[name].to(KINDS[kind])
    for node in test_cuda_ops.GRAPHS[graph]:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        own = {name: value for name, value in attributes.items() if name not in PLUGIN_ATTRIBUTES}
        inputs = [values[name] for name in node.input if name not in COUNTS]
        counts = [feeds[name].tolist() for name in node.input if name in COUNTS]
        made = tensorrt_ops.run(node.op_type, inputs, counts, **own)
        values.update(zip(node.output, made, strict=True))
    return values


def check(graph: str, kind: str, feeds: test_cuda_ops.Feeds) -> None:
    """Against the portable bodies, which compute in float32 from the same rounded numbers."""
    run = test_cuda_ops.session(graph, kind, cuda=False)
    found = through_plugins(graph, kind, feeds)
    names = [each.name for each in run.get_outputs()]
    for name, wanted in zip(names, run.run(names, feeds), strict=True):
        if wanted.dtype == np.int64:
            np.testing.assert_array_equal(found[name].numpy(), wanted)
        else:
            assert found[name].dtype == (
                KINDS[kind] if name in test_cuda_ops.ROUNDED else torch.float32
            )
            own = found[name].float().numpy()
            np.testing.assert_allclose(own, wanted, atol=test_cuda_ops.TOLERANCES[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [-1, 0, 4, 99])
def test_attention_as_its_bodies(kind: str, queries: int) -> None:
    check("attention", kind, test_cuda_ops.drawn("attention", queries=[queries]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [-3, 0, 5, HUGE])
def test_packed_tokens_as_their_bodies(kind: str, r: int) -> None:
    check("packed", kind, test_cuda_ops.drawn("packed", r=[r]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", ["tome", "pitome"])
def test_matchers_as_their_bodies(graph: str, kind: str) -> None:
    for r, tokens in itertools.product((-3, 0, 5, 99), (1, 23)):
        check(graph, kind, test_cuda_ops.drawn(graph, tokens=tokens, r=[r]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "counts", "r"), [(6, [4, 3, 2], 9), (0, [0, 5, 9], 5), (6, [0, 0, 0], 0)]
)
def test_pumer_as_its_bodies(kind: str, text: int, counts: list[int], r: int) -> None:
    check("pumer", kind, test_cuda_ops.drawn("pumer", text=[text], counts=counts, r=[r]))


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
@pytest.mark.parametrize("op", MATCHERS)
@settings(max_examples=40)
@given(
    shape=test_ops.shapes,
    r=counts_of_any_size,
    protected=st.integers(0, 2),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_matchers_agree_with_pytorch(
    op: str,
    packed: bool,
    shape: tuple[int, int, int, int],
    r: int,
    protected: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    batch, tokens, heads, head_dim = shape
    draw = np.random.default_rng(seed)
    keys = torch.from_numpy(draw.standard_normal((batch, tokens, heads * head_dim))).to(dtype)
    x = draw.standard_normal((batch, tokens, 5)).astype(np.float32)
    size = draw.integers(0, 4, (batch, tokens))
    case = test_ops.Case(op, protected, heads, r, keys.float().numpy(), x, size)
    assume(not has_near_tie(case, op, protected))
    tensors = {name: torch.from_numpy(array) for name, array in case.feeds.items()}
    sizes, trace = tensors["size"], tensors["trace"]
    attributes: dict[str, float] = {"heads": heads, "protected": protected}
    if op == "MatchPiToMe":
        attributes["margin"] = MARGIN
    if packed:
        # Queries and values are none of a matcher's business.
        op, others = f"{op}Packed", torch.full_like(keys, float("nan"))
        keys = torch.cat([others, keys, others], dim=2)
    (slots,) = tensorrt_ops.run(op, [keys, sizes], [[r]], **attributes)
    moved = [tensors["x"], sizes, slots, trace]
    found = [slots, *tensorrt_ops.run("Reduce", moved, [[r]], protected=protected)]
    for own, wanted in zip(found, case.expected, strict=True):
        np.testing.assert_allclose(own.numpy(), wanted, atol=2e-5)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 40),
    text=counts_of_any_size,
    counts=three_counts,
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([3, 8, 17]),
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
    dtype: torch.dtype,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    keys = torch.from_numpy(draw.standard_normal((batch, tokens, heads * head_dim))).to(dtype)
    case = test_pumer_ops.Case(
        heads,
        keys.float().numpy(),
        draw.standard_normal((batch, tokens, 5)).astype(np.float32),
        draw.integers(1, 4, (batch, tokens)),
        draw.random((batch, tokens)).astype(np.float32),
        text,
        counts,
    )
    assume(not case.has_near_tie)
    tensors = {name: torch.from_numpy(array) for name, array in case.feeds.items()}
    matched = [keys, tensors["size"], tensors["importance"]]
    (slots,) = tensorrt_ops.run("MatchPuMer", matched, [[text], counts], heads=heads)
    moved = [tensors["x"], tensors["size"], slots, tensors["trace"]]
    y, size, trace = tensorrt_ops.run("Reduce", moved, [case.feeds["r"].tolist()], protected=EXACT)
    assert torch.equal(trace, case.out.trace)
    assert torch.equal(size, case.out.size)
    torch.testing.assert_close(y, case.out.x, rtol=0, atol=2e-5)


@settings(max_examples=30)
@given(
    batch=st.integers(1, 2),
    queries=st.integers(1, 40),
    tokens=st.integers(1, 90),
    asked=st.integers(-1, 50),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([5, 8, 64, 72, 130]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_agrees_with_pytorch(
    batch: int,
    queries: int,
    tokens: int,
    asked: int,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    channels, scale = heads * head_dim, head_dim**-0.5
    q, k, v, size = test_cuda_attend.inputs(batch, queries, tokens, channels, dtype, seed)
    attributes = {"heads": heads, "scale": scale}
    (out,) = tensorrt_ops.run("Attend", [q, k, v, size], **attributes)
    near(out, test_cuda_attend.wanted(q, k, v, size, heads))
    (packed,) = tensorrt_ops.run("AttendPacked", [torch.cat([k, v, k], 2), size], **attributes)
    near(packed, test_cuda_attend.wanted(k, v, k, size, heads))

    query_size = torch.rand(batch, queries, generator=torch.Generator().manual_seed(seed))
    rated = [q, k, size, query_size]
    (importance,) = tensorrt_ops.run("Importance", rated, [[asked]], **attributes)
    count = min(max(asked, 0), queries)
    wanted = EAGER.importance(q, k, size, query_size, count, heads)
    torch.testing.assert_close(importance, wanted, rtol=1e-4, atol=1e-6)


def near(found: Tensor, wanted: Tensor) -> None:
    """As near as attention comes in the type of what was found."""
    scale = wanted.abs().amax((1, 2), keepdim=True)
    tolerance = test_cuda_attend.TOLERANCE[found.dtype]
    assert ((found.double() - wanted).abs() <= tolerance * scale).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_without_tokens_are_no_error(dtype: torch.dtype) -> None:
    rows, sizes = torch.ones(2, 0, 12, dtype=dtype), torch.ones(2, 0)
    (out,) = tensorrt_ops.run("AttendPacked", [rows, sizes], heads=2, scale=0.3)
    assert out.shape == (2, 0, 4)
    (slots,) = tensorrt_ops.run("MatchToMe", [rows, sizes], [[3]], heads=2, protected=1)
    moved = [rows, sizes, slots, torch.full((2, 3), -1)]
    y, size, trace = tensorrt_ops.run("Reduce", moved, [[3]], protected=1)
    assert (y.shape, size.shape) == ((2, 0, 12), (2, 0))
    assert (trace == -1).all()
