"""PuMer's ops in three implementations: PyTorch, the portable ONNX bodies, and the C++ kernels.

As in `test_ops`, slots have to agree exactly, and random draws avoid near ties.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.native import op_graphs
from tests.native.op_graphs import FLOAT, HALF, WHOLE, close, needs_library, node, runtimes, value
from tokenfold.bundle.workload import clamp
from tokenfold.models.networks.operators import EAGER, Tokens
from tokenfold.models.reduction.pumer import PuMer
from tokenfold.models.reduction.tome import ToMe

Array = npt.NDArray[Any]
InvalidArgument = ort.capi.onnxruntime_pybind11_state.InvalidArgument

HUGE = 2**63 - 1
counts_of_any_size = st.one_of(st.integers(-2, 45), st.sampled_from([HUGE, -HUGE - 1]))
three_counts = st.tuples(counts_of_any_size, counts_of_any_size, counts_of_any_size)


@cache
def importance_session(
    heads: int, head_dim: int, *, half: bool, native: bool, threads: int = 1
) -> ort.InferenceSession:
    x = HALF if half else FLOAT
    inputs = [
        value("q", x, "B", "Q", "D"),
        value("k", x, "B", "N", "D"),
        value("size", FLOAT, "B", "N"),
        value("query_size", FLOAT, "B", "Q"),
        value("queries", WHOLE, 1),
    ]
    names = [each.name for each in inputs]
    nodes = [node("Importance", names, ["out"], heads=heads, scale=head_dim**-0.5)]
    outputs = [value("out", FLOAT, "B", "N")]
    return op_graphs.session(nodes, inputs, outputs, native=native, threads=threads)


@cache
def pumer_session(
    heads: int, *, half: bool = False, native: bool, threads: int = 1
) -> ort.InferenceSession:
    """`MatchPuMer`, then an exact `Reduce`."""
    x = HALF if half else FLOAT
    inputs = [
        value("keys", x, "B", "N", "C"),
        value("x", x, "B", "N", "D"),
        value("size", FLOAT, "B", "N"),
        value("importance", FLOAT, "B", "N"),
        value("text", WHOLE, 1),
        value("counts", WHOLE, 3),
        value("r", WHOLE, 1),
        value("trace", WHOLE, "B", "P"),
    ]
    nodes = [
        node(
            "MatchPuMer", ["keys", "size", "importance", "text", "counts"], ["slots"], heads=heads
        ),
        node(
            "Reduce",
            ["x", "size", "slots", "r", "trace"],
            ["y", "new_size", "new_trace"],
            protected=-1,
        ),
    ]
    outputs = [
        value("slots", WHOLE, "B", "N"),
        value("y", x, "B", "M", "D"),
        value("new_size", FLOAT, "B", "M"),
        value("new_trace", WHOLE, "B", "P"),
    ]
    return op_graphs.session(nodes, inputs, outputs, native=native, threads=threads)


@runtimes
@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    given_queries=st.integers(1, 50),
    tokens=st.integers(1, 70),
    queries=counts_of_any_size,
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([1, 2, 5, 8, 16, 20, 64, 72]),
    half=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_importance(
    native: bool,
    batch: int,
    given_queries: int,
    tokens: int,
    queries: int,
    heads: int,
    head_dim: int,
    half: bool,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    size = draw.integers(0, 5, (batch, tokens)).astype(np.float32)
    size[:, draw.integers(tokens)] = 1
    feeds = {
        "q": draw.standard_normal((batch, given_queries, heads * head_dim)).astype(kind),
        "k": draw.standard_normal((batch, tokens, heads * head_dim)).astype(kind),
        "size": size,
        "query_size": draw.integers(0, 3, (batch, given_queries)).astype(np.float32),
    }
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    asked = min(max(queries, 0), given_queries)
    wanted = EAGER.importance(**tensors, queries=asked, heads=heads).numpy()
    run = importance_session(heads, head_dim, half=half, native=native)
    out = run.run(None, {**feeds, "queries": np.array([queries])})[0]
    np.testing.assert_allclose(out, wanted, atol=1e-6)
    counted = feeds["query_size"][:, :asked].any(1)
    np.testing.assert_allclose(out.sum(1), counted.astype(np.float32), atol=1e-5)


@dataclass(frozen=True)
class WatchedToMe(ToMe):
    """Remembers the metric and the sizes that it sees."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list, hash=False)

    def __call__(self, metric: Tensor, size: Tensor, r: int) -> Tensor:
        self.seen.append((metric, size))
        return super().__call__(metric, size, r)


@dataclass(frozen=True)
class WatchedPuMer(PuMer):
    watched: WatchedToMe = field(default_factory=WatchedToMe)

    @property
    def merge(self) -> ToMe:
        return self.watched


class Case:
    """One input of `MatchPuMer` and `Reduce`, and what PyTorch makes of it."""

    def __init__(
        self,
        heads: int,
        keys: Array,
        x: Array,
        size: Array,
        importance: Array,
        text: int,
        counts: tuple[int, ...],
    ) -> None:
        batch, tokens = size.shape
        trace = np.concatenate(
            [np.tile(np.arange(tokens), (batch, 1)), np.full((batch, 1), -1)], axis=1
        )
        start = Tokens(
            torch.from_numpy(x),
            torch.from_numpy(size.astype(np.float32)),
            torch.from_numpy(trace),
            text=min(max(text, 0), tokens),
        )
        matcher = WatchedPuMer()
        self.out = EAGER.reduce(
            start,
            torch.from_numpy(keys).float(),
            heads,
            matcher,
            counts,
            torch.from_numpy(importance),
        )
        self.merged = matcher.watched.seen
        self.feeds = {
            "keys": keys,
            "x": x,
            "size": size.astype(np.float32),
            "importance": importance,
            "text": np.array([text]),
            "counts": np.array(counts),
            "r": np.array([tokens - self.out.x.shape[1]]),
            "trace": trace,
        }

    @property
    def has_near_tie(self) -> bool:
        """Whether rounding could change which tokens merge."""
        for metric, size in self.merged:
            if metric.shape[1] < 2:
                continue
            matcher = ToMe()
            score, _ = matcher._best(metric, size)
            unit = torch.nn.functional.normalize(metric, dim=-1)
            cosine = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
            if close(score) or close(cosine.sort(-1).values[..., -2:]):
                return True
        return False

    def check(self, run: ort.InferenceSession) -> None:
        slots, y, new_size, trace = run.run(None, self.feeds)
        wanted = self.out
        np.testing.assert_array_equal(trace, wanted.trace.numpy())
        np.testing.assert_array_equal(slots, trace[:, :-1])
        np.testing.assert_array_equal(new_size, wanted.size.numpy())
        present = new_size > 0
        tolerance = 4e-3 if y.dtype == np.float16 else 2e-5
        np.testing.assert_allclose(y[present], wanted.x.numpy()[present], atol=tolerance)
        assert np.isfinite(y).all()


@runtimes
@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 40),
    text=counts_of_any_size,
    counts=three_counts,
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([3, 8, 17]),
    levels=st.sampled_from([1, 4, 10_000]),
    smallest_size=st.integers(0, 1),
    half=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_pumer_agrees_with_pytorch(
    native: bool,
    batch: int,
    tokens: int,
    text: int,
    counts: tuple[int, int, int],
    heads: int,
    head_dim: int,
    levels: int,
    smallest_size: int,
    half: bool,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    case = Case(
        heads,
        draw.standard_normal((batch, tokens, heads * head_dim)).astype(kind),
        draw.standard_normal((batch, tokens, 5)).astype(kind),
        draw.integers(smallest_size, 4, (batch, tokens)),
        (draw.integers(levels, size=(batch, tokens)) / levels).astype(np.float32),
        text,
        counts,
    )
    assume(not case.has_near_tie)
    case.check(pumer_session(heads, half=half, native=native))


@runtimes
@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    text=st.integers(0, 40),
    counts=three_counts,
    directions=st.lists(st.integers(0, 4), min_size=40, max_size=40),
    sizes=st.lists(st.integers(0, 2), min_size=40, max_size=40),
    importances=st.lists(st.integers(0, 2), min_size=40, max_size=40),
)
def test_ties_go_to_the_lowest_index(
    native: bool,
    tokens: int,
    text: int,
    counts: tuple[int, int, int],
    directions: list[int],
    sizes: list[int],
    importances: list[int],
) -> None:
    # Axes and zero vectors: every cosine is exactly 0 or 1, so nearly everything is a tie.
    axes = np.concatenate([np.zeros((1, 4)), 2 * np.eye(4)]).astype(np.float32)
    case = Case(
        1,
        axes[np.array(directions[:tokens])][None],
        np.arange(tokens * 3, dtype=np.float32).reshape(1, tokens, 3),
        np.array(sizes[:tokens])[None],
        np.array(importances[:tokens], np.float32)[None],
        text,
        counts,
    )
    case.check(pumer_session(1, native=native))


@runtimes
@settings(max_examples=60, deadline=None)
@given(
    text=st.integers(0, 20),
    image=st.integers(0, 20),
    text_padding=st.integers(0, 5),
    image_padding=st.integers(0, 5),
    counts=st.tuples(st.integers(0, 22), st.integers(0, 12), st.integers(0, 12)),
    seed=st.integers(0, 2**32 - 1),
)
def test_padding_moves_no_token(
    native: bool,
    text: int,
    image: int,
    text_padding: int,
    image_padding: int,
    counts: tuple[int, int, int],
    seed: int,
) -> None:
    assume(text + image > 0)
    draw = np.random.default_rng(seed)
    # What a plan made for the bare lengths asks: padding leaves room for more.
    keep = max(image - counts[0], 1)
    counts = (image - keep if image else 0, clamp(counts[1], keep, 1), clamp(counts[2], text, 1))
    assume(any(counts))
    tokens = text + image
    keys = draw.standard_normal((1, tokens, 8)).astype(np.float32)
    x = draw.standard_normal((1, tokens, 5)).astype(np.float32)
    importance = draw.random((1, tokens)).astype(np.float32)
    bare = Case(2, keys, x, np.ones((1, tokens)), importance, text, counts)
    assume(not bare.has_near_tie)

    def padded(array: Array, fill: float) -> Array:
        widths = [(0, 0)] * array.ndim
        parts = []
        for part, more in ((array[:, :text], text_padding), (array[:, text:], image_padding)):
            widths[1] = (0, more)
            parts.append(np.pad(part, widths, constant_values=fill))
        return np.concatenate(parts, axis=1)

    size = padded(np.ones((1, tokens), np.float32), 0)
    feeds = {
        **bare.feeds,
        "keys": padded(keys, 0.5),
        "x": padded(x, 7),
        "size": size,
        "importance": padded(importance, 9),
        "text": np.array([text + text_padding]),
        "trace": np.flatnonzero(size[0])[None],
    }
    slots, y, new_size, trace = pumer_session(2, native=native).run(None, feeds)
    text_after = text - counts[2]
    wanted = bare.out.trace.numpy()[:, :-1].copy()
    wanted[wanted >= text_after] += text_padding
    np.testing.assert_array_equal(trace, wanted)
    np.testing.assert_array_equal(slots[size > 0], wanted[0])
    present = new_size > 0
    np.testing.assert_array_equal(new_size[present], bare.out.size[0].numpy())
    np.testing.assert_allclose(y[present], bare.out.x[0].numpy(), atol=2e-5)


@runtimes
def test_nothing_asked_moves_nothing(native: bool) -> None:
    draw = np.random.default_rng(0)
    keys, x = (draw.standard_normal((2, 9, 8)).astype(np.float32) for _ in range(2))
    importance = draw.random((2, 9)).astype(np.float32)
    for counts in ((0, 0, 0), (-3, -HUGE - 1, -1)):
        case = Case(2, keys, x, np.ones((2, 9)), importance, 4, counts)
        slots, y, _, _ = pumer_session(2, native=native).run(None, case.feeds)
        assert (slots == np.arange(9)).all()
        assert np.array_equal(y, x), "bit for bit: plan 0 is the unreduced network"


@needs_library
def test_threads_change_no_bit() -> None:
    draw = np.random.default_rng(2)
    a, b = (draw.standard_normal((4, 50, 48)).astype(np.float32) for _ in range(2))
    importance = draw.random((4, 50)).astype(np.float32)
    even = ones(4, 50)
    pumer = Case(3, a, b, even, importance, 20, (6, 7, 4)).feeds
    asked = np.array([20])
    attention = {"q": a, "k": b, "size": even, "query_size": even, "queries": asked}
    for feeds, sessions in (
        (pumer, [pumer_session(3, native=True, threads=n) for n in (1, 2)]),
        (
            attention,
            [importance_session(3, 16, half=False, native=True, threads=n) for n in (1, 2)],
        ),
    ):
        one = sessions[0].run(None, feeds)
        for _ in range(5):
            for first, second in zip(one, sessions[1].run(None, feeds), strict=True):
                assert np.array_equal(first, second)


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


@needs_library
def test_bad_inputs_of_pumer_are_errors_and_harm_nothing() -> None:
    run = pumer_session(2, native=True)
    good = Case(2, ones(2, 8, 6), ones(2, 8, 4), ones(2, 8), ones(2, 8), 3, (1, 1, 1)).feeds
    for name, array, message in (
        ("keys", ones(2, 8, 7), "heads"),
        ("keys", ones(2, 9, 6), "size and importance"),
        ("importance", ones(2, 7), "size and importance"),
        ("importance", ones(1, 8), "size and importance"),
        ("trace", np.full((2, 3), 8), "trace"),
        ("r", np.array([4]), "slots"),
        ("r", np.array([HUGE]), "slots"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            run.run(None, {**good, name: array})
    assert len(run.run(None, good)) == 4


@needs_library
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -5.0])
def test_importance_that_is_none_stays_in_range(bad: float) -> None:
    draw = np.random.default_rng(3)
    importance = draw.random((1, 30)).astype(np.float32)
    importance[:, 10:25:2] = bad
    keys = draw.standard_normal((1, 30, 6)).astype(np.float32)
    case = Case(2, keys, ones(1, 30, 4), ones(1, 30), importance, 8, (5, 6, 2))
    slots, _, new_size, _ = pumer_session(2, native=True).run(None, case.feeds)
    assert new_size.shape[1] == 30 - 5 - 6 - 2
    assert (slots >= -1).all()
    assert (slots < new_size.shape[1]).all()


@needs_library
def test_bad_inputs_of_importance_are_errors() -> None:
    run = importance_session(2, 3, half=False, native=True)
    good = {
        "q": ones(2, 5, 6),
        "k": ones(2, 8, 6),
        "size": ones(2, 8),
        "query_size": ones(2, 5),
        "queries": np.array([4]),
    }
    for name, array, message in (
        ("q", ones(2, 5, 7), "heads"),
        ("q", ones(1, 5, 6), "k is"),
        ("k", ones(2, 8, 4), "k is"),
        ("size", ones(2, 5), "size is"),
        ("query_size", ones(2, 8), "query_size is"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            run.run(None, {**good, name: array})
    with pytest.raises(InvalidArgument, match="a key"):
        run.run(None, {**good, "k": ones(2, 0, 6), "size": ones(2, 0)})
    np.testing.assert_allclose(run.run(None, good)[0], 1 / 8, rtol=1e-6)
