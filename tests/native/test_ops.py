"""The ops in three implementations: PyTorch, the portable ONNX bodies, and the C++ kernels.

Matching has to agree exactly. Where two candidates are closer than rounding, implementations may
differ, so random draws avoid near ties; exact ties are drawn on purpose, from vectors whose cosines
are exactly 0 or 1.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.native import op_graphs
from tests.native.op_graphs import FLOAT, HALF, WHOLE, close, needs_library, node, runtimes, value
from tokenfold.bundle.workload import clamp
from tokenfold.models.networks.operators import EAGER
from tokenfold.models.reduction import slots as slotting
from tokenfold.models.reduction.matcher import Matcher, unit
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.tome import ToMe

Array = npt.NDArray[Any]
MARGIN = 0.45
MATCHERS = ["MatchToMe", "MatchPiToMe"]


@cache
def session(
    op: str, heads: int, protected: int, *, half: bool, native: bool, threads: int = 1
) -> ort.InferenceSession:
    """A graph of a matcher and a reducer, or of attention alone."""
    x = HALF if half else FLOAT
    size = value("size", FLOAT, "B", "N")
    if op == "Attend":
        nodes = [node("Attend", ["q", "k", "v", "size"], ["out"], heads=heads, scale=0.3)]
        inputs = [value("q", x, "B", "Q", "D"), *(value(n, x, "B", "N", "D") for n in "kv"), size]
        outputs = [value("out", x, "B", "Q", "D")]
    else:
        attributes: dict[str, int | float] = {"heads": heads, "protected": protected}
        if op == "MatchPiToMe":
            attributes["margin"] = MARGIN
        nodes = [
            node(op, ["keys", "size", "r"], ["slots"], **attributes),
            node(
                "Reduce",
                ["x", "size", "slots", "r", "trace"],
                ["y", "new_size", "new_trace"],
                protected=protected,
            ),
        ]
        inputs = [
            value("keys", x, "B", "N", "C"),
            value("x", x, "B", "N", "D"),
            size,
            value("r", WHOLE, 1),
            value("trace", WHOLE, "B", "P"),
        ]
        outputs = [
            value("slots", WHOLE, "B", "N"),
            value("y", x, "B", "M", "D"),
            value("new_size", FLOAT, "B", "M"),
            value("new_trace", WHOLE, "B", "P"),
        ]
    return op_graphs.session(nodes, inputs, outputs, native=native, threads=threads)


def matcher(op: str, protected: int) -> Matcher:
    if op == "MatchToMe":
        return ToMe(protected > 0, protected > 1)
    return PiToMe(MARGIN, protected)


class Case:
    """One input of a matcher and a reducer, and what PyTorch makes of it."""

    def __init__(
        self, op: str, protected: int, heads: int, r: int, keys: Array, x: Array, size: Array
    ) -> None:
        self.feeds = {
            "keys": keys,
            "x": x,
            "size": size.astype(np.float32),
            "r": np.array([r]),
            "trace": np.concatenate(
                [np.tile(np.arange(size.shape[1]), (len(size), 1)), np.full((len(size), 1), -1)], 1
            ),
        }
        tensors = {name: torch.from_numpy(array) for name, array in self.feeds.items()}
        own = matcher(op, protected)
        self.metric = tensors["keys"].float().unflatten(2, (heads, -1)).mean(2)
        self.slots = own(self.metric, tensors["size"], r)
        self.width = own.width(size.shape[1], r)
        y, new_size = slotting.reduce(tensors["x"], tensors["size"], self.slots, self.width)
        trace = slotting.compose(tensors["trace"], self.slots)
        self.expected = [self.slots.numpy(), y.numpy(), new_size.numpy(), trace.numpy()]

    def check(self, run: ort.InferenceSession) -> None:
        slots, y, new_size, trace = run.run(None, self.feeds)
        np.testing.assert_array_equal(slots, self.expected[0])
        half = y.dtype == np.float16
        np.testing.assert_allclose(y, self.expected[1], atol=4e-3 if half else 2e-5)
        np.testing.assert_array_equal(new_size, self.expected[2])
        np.testing.assert_array_equal(trace, self.expected[3])
        assert np.isfinite(y).all()


def has_near_tie(case: Case, op: str, protected: int) -> bool:
    """Whether rounding could change which tokens merge; exact ties do not count."""
    metric = case.metric.double()
    if metric.shape[1] == 1:
        return False
    m = unit(metric)
    cosine = m @ m.transpose(1, 2)
    size = torch.from_numpy(case.feeds["size"])
    own = matcher(op, protected)
    if isinstance(own, ToMe):
        score, _ = own._best(metric, size)
        rows = cosine[:, ::2, 1::2]
    else:
        assert isinstance(own, PiToMe)
        score = own._energy(cosine, size)
        rows = cosine - 9 * torch.eye(cosine.shape[1])
    best = rows.sort(-1).values[..., -2:]
    return close(score) or close(best)


shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 3, 8, 17])
)


@pytest.mark.parametrize("op", MATCHERS)
@runtimes
@settings(max_examples=60, deadline=None)
@given(
    shape=shapes,
    r=st.integers(0, 50),
    protected=st.integers(0, 2),
    largest_size=st.integers(1, 4),
    with_zeros=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_inputs_agree_with_pytorch(
    op: str,
    native: bool,
    shape: tuple[int, int, int, int],
    r: int,
    protected: int,
    largest_size: int,
    with_zeros: bool,
    half: bool,
    seed: int,
) -> None:
    batch, tokens, heads, head_dim = shape
    draw = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    keys = draw.standard_normal((batch, tokens, heads * head_dim)).astype(kind)
    x = draw.standard_normal((batch, tokens, 5)).astype(kind)
    size = draw.integers(0 if with_zeros else 1, largest_size + 1, (batch, tokens))
    case = Case(op, protected, heads, r, keys, x, size)
    assume(not has_near_tie(case, op, protected))
    case.check(session(op, heads, protected, half=half, native=native))


@pytest.mark.parametrize("op", MATCHERS)
@runtimes
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    r=st.integers(0, 50),
    protected=st.integers(0, 2),
    directions=st.lists(st.integers(0, 4), min_size=40, max_size=40),
    sizes=st.lists(st.integers(0, 2), min_size=40, max_size=40),
)
def test_ties_go_to_the_lowest_index(
    op: str,
    native: bool,
    tokens: int,
    r: int,
    protected: int,
    directions: list[int],
    sizes: list[int],
) -> None:
    # Axes and zero vectors: every cosine is exactly 0 or 1, so nearly everything is a tie.
    axes = np.concatenate([np.zeros((1, 4)), 2 * np.eye(4)]).astype(np.float32)
    keys = axes[np.array(directions[:tokens])][None]
    x = np.arange(tokens * 3, dtype=np.float32).reshape(1, tokens, 3)
    case = Case(op, protected, 1, r, keys, x, np.array(sizes[:tokens])[None])
    # PiToMe's energies are sums, exact only up to the order of adding.
    assume(op == "MatchToMe" or not has_near_tie(case, op, protected))
    case.check(session(op, 1, protected, half=False, native=native))


@pytest.mark.parametrize("op", MATCHERS)
@pytest.mark.parametrize("tokens", [196, 197, 198, 577, 1025])
@runtimes
def test_sizes_of_real_networks(op: str, tokens: int, native: bool) -> None:
    draw = np.random.default_rng(tokens)
    # Few directions far apart keep PiToMe's energies from being nearly equal.
    keys = draw.standard_normal((1, tokens, 128)).astype(np.float32)
    x = draw.standard_normal((1, tokens, 384)).astype(np.float32)
    size = draw.integers(1, 4, (1, tokens))
    for r in (1, 16, tokens):
        case = Case(op, 1, 2, r, keys, x, size)
        slots, y, new_size, _ = session(op, 2, 1, half=False, native=native).run(None, case.feeds)
        # Among half a million cosines some are nearly equal. One PiToMe token that ranks elsewhere
        # changes all pairs after it, so there only short plans can be compared.
        if op == "MatchToMe" or r < tokens:
            assert (slots == case.expected[0]).mean() > 0.95
        assert y.shape[1] == case.width
        assert new_size.sum() == size.sum()
        np.testing.assert_allclose(
            (y * new_size[..., None]).sum(1), (x * size[..., None]).sum(1), rtol=1e-3, atol=1e-2
        )


@pytest.mark.parametrize("op", MATCHERS)
@runtimes
def test_nothing_asked_moves_nothing(op: str, native: bool) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 9, 7)).astype(np.float32)
    keys = draw.standard_normal((2, 9, 8)).astype(np.float32)
    for r in (0, -3):
        case = Case(op, 1, 2, r, keys, x, np.ones((2, 9)))
        slots, y, size, trace = session(op, 2, 1, half=False, native=native).run(None, case.feeds)
        assert (slots == np.arange(9)).all()
        assert (trace[:, :9] == np.arange(9)).all()
        assert np.array_equal(y, x), "bit for bit: plan 0 is the unreduced network"
        assert (size == 1).all()


@runtimes
@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 70),
    tokens=st.integers(1, 70),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([1, 2, 5, 8, 16, 20, 32, 64, 72, 80]),
    half=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention(
    native: bool,
    batch: int,
    queries: int,
    tokens: int,
    heads: int,
    head_dim: int,
    half: bool,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    q, k, v = (
        draw.standard_normal((batch, count, heads * head_dim)).astype(kind)
        for count in (queries, tokens, tokens)
    )
    size = draw.integers(0, 5, (batch, tokens)).astype(np.float32)
    size[:, draw.integers(tokens)] = 1
    run = session("Attend", heads, 0, half=half, native=native)
    out = run.run(None, {"q": q, "k": k, "v": v, "size": size})[0]

    def split(array: Array) -> Array:
        return array.astype(np.float64).reshape(batch, -1, heads, head_dim).swapaxes(1, 2)

    scores = 0.3 * split(q) @ split(k).swapaxes(2, 3)
    weights = np.exp(scores - scores.max(-1, keepdims=True)) * size[:, None, None]
    wanted = (weights / weights.sum(-1, keepdims=True)) @ split(v)
    wanted = wanted.swapaxes(1, 2).reshape(out.shape)
    np.testing.assert_allclose(out, wanted, atol=2e-2 if half else 2e-5)


@runtimes
def test_attention_equals_the_eager_network_operator(native: bool) -> None:
    draw = np.random.default_rng(1)
    q, k, v = (draw.standard_normal((2, 33, 24)).astype(np.float32) for _ in range(3))
    size = draw.integers(1, 9, (2, 33)).astype(np.float32)
    run = session("Attend", 2, 0, half=False, native=native)
    # The graph's scale is 0.3 where eager code has 1 / sqrt(d).
    scaled = (q * (12**-0.5 / 0.3)).astype(np.float32)
    out = run.run(None, {"q": scaled, "k": k, "v": v, "size": size})[0]
    wanted = EAGER.attend(
        torch.from_numpy(q), torch.from_numpy(k), torch.from_numpy(v), torch.from_numpy(size), 2
    )
    np.testing.assert_allclose(out, wanted.numpy(), atol=1e-5)


@needs_library
def test_scores_of_any_magnitude_stay_finite() -> None:
    q = np.full((1, 20, 16), 300, np.float32)
    q[:, ::2] *= -1
    size = np.ones((1, 20), np.float32)
    out = session("Attend", 2, 0, half=False, native=True).run(
        None, {"q": q, "k": q, "v": q, "size": size}
    )[0]
    np.testing.assert_allclose(out, q, rtol=1e-6)


@runtimes
@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 30),
    padding=st.integers(1, 9),
    r=st.integers(0, 20),
    protected=st.integers(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_padding_at_the_end_moves_no_token(
    native: bool, tokens: int, padding: int, r: int, protected: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    r = clamp(r, tokens, protected)  # of the tokens alone: padding leaves room for more
    keys = draw.standard_normal((2, tokens + padding, 8)).astype(np.float32)
    x = draw.standard_normal((2, tokens + padding, 3)).astype(np.float32)
    size = np.ones((2, tokens + padding), np.float32)
    size[:, tokens:] = 0
    bare = Case("MatchToMe", protected, 2, r, keys[:, :tokens], x[:, :tokens], size[:, :tokens])
    assume(not has_near_tie(bare, "MatchToMe", protected))
    run = session("MatchToMe", 2, protected, half=False, native=native)
    feeds = {**bare.feeds, "keys": keys, "x": x, "size": size}
    slots, y, new_size, trace = run.run(None, feeds)
    np.testing.assert_array_equal(slots[:, :tokens], bare.expected[0])
    np.testing.assert_allclose(y[:, : tokens - r], bare.expected[1], atol=2e-5)
    np.testing.assert_array_equal(new_size[:, : tokens - r], bare.expected[2])
    assert not new_size[:, tokens - r :].any()
    np.testing.assert_array_equal(trace, bare.expected[3])


@needs_library
@pytest.mark.parametrize("op", [*MATCHERS, "Attend"])
def test_threads_change_no_bit(op: str) -> None:
    draw = np.random.default_rng(2)
    arrays = {
        name: draw.standard_normal((4, 50, 48)).astype(np.float32)
        for name in (["q", "k", "v"] if op == "Attend" else ["keys", "x"])
    }
    feeds = {**arrays, "size": np.ones((4, 50), np.float32)}
    if op != "Attend":
        feeds |= {"r": np.array([12]), "trace": np.zeros((4, 3), np.int64)}
    one = session(op, 3, 1, half=False, native=True).run(None, feeds)
    for _ in range(5):
        two = session(op, 3, 1, half=False, native=True, threads=2).run(None, feeds)
        for a, b in zip(one, two, strict=True):
            assert np.array_equal(a, b)


@needs_library
def test_bad_inputs_are_errors_and_harm_nothing() -> None:
    run = session("MatchToMe", 2, 1, half=False, native=True)
    good = {
        "keys": np.ones((2, 8, 6), np.float32),
        "x": np.ones((2, 8, 4), np.float32),
        "size": np.ones((2, 8), np.float32),
        "r": np.array([2]),
        "trace": np.zeros((2, 3), np.int64),
    }
    bad: list[tuple[str, Array, str]] = [
        ("keys", np.ones((2, 8, 7), np.float32), "heads"),
        ("keys", np.ones((2, 9, 6), np.float32), "size is"),
        ("trace", np.full((2, 3), 8), "trace"),
        ("trace", np.zeros((3, 3), np.int64), "trace"),
    ]
    for name, array, message in bad:
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match=message):
            run.run(None, {**good, name: array})
    assert len(run.run(None, good)) == 4


@needs_library
def test_attention_refuses_shapes_that_do_not_fit() -> None:
    run = session("Attend", 2, 0, half=False, native=True)

    def ones(*shape: int) -> Array:
        return np.ones(shape, np.float32)

    good = {"q": ones(2, 5, 6), "k": ones(2, 8, 6), "v": ones(2, 8, 6), "size": ones(2, 8)}
    for name, array, message in (
        ("q", ones(1, 5, 6), "k is"),
        ("q", ones(2, 5, 7), "heads"),
        ("k", ones(2, 8, 8), "k is"),
        ("v", ones(2, 7, 6), "k and v"),
        ("size", ones(2, 5), "size is"),
    ):
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match=message):
            run.run(None, {**good, name: array})
    empty = {"k": ones(2, 0, 6), "v": ones(2, 0, 6), "size": ones(2, 0)}
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="a key"):
        run.run(None, {**good, **empty})
