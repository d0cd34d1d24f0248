"""Tests of prepared kernel launches: checks, counts, grid, threads, shared memory."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.native.cuda_host import interface, library
from tests.native.cuda_host.library import KERNELS, needs_compiler
from tokenfold.bundle.pair_workload import pumer_widths
from tokenfold.bundle.workload import clamp

pytestmark = needs_compiler

MATCHERS = ["match_tome", "match_pitome", "match_pumer"]
KIB = 1024
# Shared memory that a block may use by default; matchers request more.
STATIC = 48 * KIB
# Threads and shared memory (bytes) of an SM. From sm_80 on, each block reserves 1 KB (CUDA C++
# Programming Guide, compute capabilities).
SM = {
    75: (1024, 64 * KIB),
    80: (2048, 164 * KIB),
    86: (1536, 100 * KIB),
    87: (1536, 164 * KIB),
    88: (1536, 100 * KIB),
    89: (1536, 100 * KIB),
    90: (2048, 228 * KIB),
    100: (2048, 228 * KIB),
    103: (2048, 228 * KIB),
    110: (1536, 228 * KIB),
    120: (1536, 100 * KIB),
}
HUGE = 2**63 - 1


def matcher_arguments(op: str, **changes: Any) -> ctypes.Structure:
    """Return valid arguments of a matcher with some changes."""
    of = interface.OPS[op](type=0, batch=2, tokens=197, heads=12, head_dim=64)
    if op == "match_pumer":
        of.importance = 4096
    of.keys = of.size = of.slots = of.workspace = 4096
    of.workspace_bytes = 2**62
    # By default, some tokens are removed.
    setattr(of, "merge" if op == "match_pumer" else "r", 16)
    for name, value in changes.items():
        setattr(of, name, value)
    return of


def reduce_arguments(**changes: Any) -> interface.Reduce:
    of = interface.Reduce(type=0, batch=2, tokens=197, width=181, dim=768, patches=197)
    of.x = of.size = of.slots = of.trace = of.y = of.new_size = of.new_trace = 4096
    for name, value in changes.items():
        setattr(of, name, value)
    return of


def launched(op: str, of: ctypes.Structure) -> interface.Launch:
    code, launch = library.prepare(op, of)
    assert code == interface.OK, library.text(code)
    return launch


def integers(launch: interface.Launch, offset: int, count: int) -> list[int]:
    """Return 32-bit integers of a launch's arguments, from byte `offset` on."""
    return list(struct.unpack_from(f"{count}i", bytes(launch.arguments), offset))


def vectors_and_batch(op: str, launch: interface.Launch) -> tuple[int, ...]:
    """Return these two arguments, which follow 5 pointers and 8 integers, or 4 and 7."""
    return tuple(integers(launch, 80 if op == "match_pumer" else 68, 2))


@pytest.mark.parametrize("op", MATCHERS)
@given(
    tokens=st.integers(1, interface.MOST_TOKENS),
    head_dim=st.sampled_from([1, 16, 64, 72, 128]),
    batch=st.integers(1, 10_000),
)
def test_a_matcher_fits_every_architecture(op: str, tokens: int, head_dim: int, batch: int) -> None:
    launch = launched(op, matcher_arguments(op, tokens=tokens, head_dim=head_dim, batch=batch))
    assert launch.kernel.decode().startswith(f"tokenfold_{op}") or tokens <= 3
    assert launch.blocks == batch
    assert launch.threads % 32 == 0
    for architecture, (threads, shared) in SM.items():
        assert launch.threads <= threads
        assert launch.shared_bytes + reserved(architecture) <= shared


def reserved(architecture: int) -> int:
    """Return the bytes of shared memory that each block reserves."""
    return KIB if architecture >= 80 else 0


@pytest.mark.parametrize("op", ["match_tome", "match_pitome"])
@pytest.mark.parametrize(
    ("changes", "kernel"),
    [
        ({}, "_resident"),
        ({"tokens": 196, "head_dim": 72, "type": 1}, "_resident"),
        ({"tokens": 577}, ""),
        ({"head_dim": 128}, ""),
        ({"head_dim": 66}, ""),
        ({"r": 0}, None),
        ({"r": -1}, None),
        ({"tokens": 2, "protected_tokens": 1}, None),
    ],
)
def test_kernel_depends_on_the_image_size(
    op: str, changes: dict[str, Any], kernel: str | None
) -> None:
    launch = launched(op, matcher_arguments(op, **changes))
    name = launch.kernel.decode()
    assert name == ("tokenfold_match_nothing" if kernel is None else f"tokenfold_{op}{kernel}")
    # Without tokens to remove, there is no work to share between blocks.
    assert (launch.most_cluster, launch.shared_bytes > 0) == (
        (1, False) if kernel is None else (8, True)
    )


@pytest.mark.parametrize("op", MATCHERS)
def test_two_images_fit_on_a_large_multiprocessor(op: str) -> None:
    launch = launched(op, matcher_arguments(op))
    for architecture, (threads, shared) in SM.items():
        room = shared // (launch.shared_bytes + reserved(architecture))
        # On an SM with little shared memory, one resident image is faster than two that are not.
        assert min(threads // launch.threads, room) >= (2 if shared > 100 * KIB else 1)


@pytest.mark.parametrize("op", MATCHERS)
@given(
    batch=st.integers(1, 10_000),
    architecture=st.sampled_from(list(SM)),
    processors=st.integers(1, 200),
)
def test_images_are_spread_over_free_processors(
    op: str, batch: int, architecture: int, processors: int
) -> None:
    launch = launched(op, matcher_arguments(op, batch=batch))
    assert (launch.cluster, launch.most_cluster) == (1, 8)
    library.spread(launch, architecture, processors)
    assert launch.blocks == batch * launch.cluster
    if architecture < 90:
        assert launch.cluster == 1
        return
    assert launch.cluster in {1, 2, 4, 8}
    half = processors // 2
    assert launch.cluster == 1 or launch.blocks <= half
    assert launch.cluster == 8 or 2 * launch.blocks > half


@pytest.mark.parametrize("op", MATCHERS)
@pytest.mark.parametrize(
    ("stride", "vectors", "code"),
    [
        (0, 1, interface.OK),
        (768, 1, interface.OK),
        (3 * 768, 1, interface.OK),
        (770, 0, interface.OK),
        (767, 0, interface.BAD_SHAPE),
        (-1, 0, interface.BAD_SHAPE),
        (2**21, 0, interface.BAD_SHAPE),
    ],
)
def test_strides_between_keys(op: str, stride: int, vectors: int, code: int) -> None:
    of = matcher_arguments(op, heads=12, head_dim=64, type=1, stride=stride)
    actual, launch = library.prepare(op, of)
    assert actual == code
    if code == interface.OK:
        assert vectors_and_batch(op, launch) == (vectors, 2)


def test_only_matchers_are_spread() -> None:
    launch = launched("reduce", reduce_arguments(batch=1))
    before = bytes(launch)
    library.spread(launch, 90, 132)
    assert bytes(launch) == before


@pytest.mark.parametrize("op", MATCHERS)
@pytest.mark.parametrize(
    ("head_dim", "type_", "start", "vectors"),
    [
        (64, torch.float16, 0, True),
        (72, torch.bfloat16, 0, True),
        (256, torch.float16, 0, True),
        (264, torch.float16, 0, False),
        (4, torch.float32, 0, True),
        (4, torch.float16, 0, False),
        (128, torch.float32, 0, True),
        (132, torch.float32, 0, False),
        (64, torch.float16, 8, False),
    ],
)
def test_aligned_heads_are_read_in_vectors(
    op: str, head_dim: int, type_: torch.dtype, start: int, vectors: bool
) -> None:
    of = matcher_arguments(op, head_dim=head_dim, type=interface.TYPES[type_], keys=4096 + start)
    assert vectors_and_batch(op, launched(op, of)) == (vectors, 2)


def test_every_architecture_is_checked() -> None:
    text = (KERNELS / "architectures.txt").read_text()
    assert list(SM) == [int(line) for line in text.split()]


@given(
    batch=st.integers(1, 1000),
    tokens=st.integers(1, interface.MOST_REDUCE_TOKENS),
    width=st.integers(0, 3000),
)
def test_the_reducer_covers_every_slot(batch: int, tokens: int, width: int) -> None:
    launch = launched("reduce", reduce_arguments(batch=batch, tokens=tokens, width=width))
    *_, rows = integers(launch, 7 * 8, 6)
    slots = launch.threads // 32 * rows
    assert launch.blocks % batch == 0
    assert max(width - slots, 0) < launch.blocks // batch * slots < width + 2 * slots
    assert launch.shared_bytes <= STATIC
    assert launch.shared_bytes * 8 >= slots * tokens


def test_a_warp_of_the_reducer_has_more_slots_with_many_images() -> None:
    def rows(batch: int, tokens: int = 197) -> int:
        return integers(launched("reduce", reduce_arguments(batch=batch, tokens=tokens)), 7 * 8, 6)[
            -1
        ]

    assert [rows(batch) for batch in (1, 16, 32, 43, 44, 128, 2**20)] == [1, 1, 2, 2, 4, 4, 4]
    assert [rows(128, tokens) for tokens in (8192, 8193, 32768)] == [4, 1, 1]


@pytest.mark.parametrize(
    ("dim", "type_", "start", "vectors"),
    [
        (768, torch.float32, 0, True),
        (768, torch.float16, 0, True),
        (4, torch.float32, 0, True),
        (4, torch.float16, 0, False),
        (12, torch.bfloat16, 0, False),
        (768, torch.float32, 4, False),
        (768, torch.bfloat16, 8, False),
    ],
)
def test_aligned_rows_are_moved_in_vectors(
    dim: int, type_: torch.dtype, start: int, vectors: bool
) -> None:
    for name in ("x", "y"):
        of = reduce_arguments(dim=dim, type=interface.TYPES[type_], **{name: 4096 + start})
        launch = launched("reduce", of)
        *_, flag = integers(launch, 7 * 8, 5)
        assert flag == vectors


@given(
    tokens=st.integers(1, interface.MOST_TOKENS),
    r=st.one_of(st.integers(-3, 600), st.sampled_from([HUGE, -HUGE - 1])),
    protected=st.integers(0, 2),
)
def test_counts_are_clamped_like_in_the_workload(tokens: int, r: int, protected: int) -> None:
    for op in ("match_tome", "match_pitome"):
        of = matcher_arguments(op, tokens=tokens, r=r, protected_tokens=protected)
        *_, count = integers(launched(op, of), 5 * 8, 6)
        assert count == clamp(r, tokens, protected)


counts_of_any_size = st.one_of(st.integers(-2, 900), st.sampled_from([HUGE, -HUGE - 1]))


@given(
    tokens=st.integers(1, interface.MOST_TOKENS),
    text=counts_of_any_size,
    counts=st.tuples(counts_of_any_size, counts_of_any_size, counts_of_any_size),
)
def test_counts_of_pumer_are_clamped_like_in_the_workload(
    tokens: int, text: int, counts: tuple[int, int, int]
) -> None:
    prune, merge, words = counts
    of = matcher_arguments("match_pumer", tokens=tokens, text=text, prune=prune, merge=merge)
    of.merge_text = words
    launch = launched("match_pumer", of)
    actual = integers(launch, 6 * 8, 8)
    length = min(max(text, 0), tokens)
    assert actual[:5] == [tokens, 12, 64, 768, length]
    text_count, pruned, count = actual[5:]
    image = tokens - length
    remaining = max(image - pruned, min(image, 1))
    assert (length - text_count, remaining - count) == pumer_widths(length, image, counts)


@pytest.mark.parametrize("op", MATCHERS)
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"type": 3}, interface.BAD_TYPE),
        ({"type": -1}, interface.BAD_TYPE),
        ({"tokens": 1025}, interface.TOO_MANY_TOKENS),
        ({"tokens": -1}, interface.BAD_SHAPE),
        ({"heads": 0}, interface.BAD_SHAPE),
        ({"head_dim": 0}, interface.BAD_SHAPE),
        ({"head_dim": HUGE}, interface.BAD_SHAPE),
        ({"batch": -1}, interface.BAD_SHAPE),
        ({"batch": 2**31}, interface.BATCH_TOO_LARGE),
        ({"keys": None}, interface.NO_POINTER),
        ({"slots": None}, interface.NO_POINTER),
        ({"size": 4098}, interface.MISALIGNED),
        ({"slots": 4100}, interface.MISALIGNED),
        ({"workspace": None}, interface.BAD_WORKSPACE),
        ({"workspace": 4104}, interface.BAD_WORKSPACE),
        ({"workspace_bytes": 2 * 197 * 64 * 4 - 1}, interface.BAD_WORKSPACE),
        ({"workspace_bytes": 2 * 197 * 64 * 4}, interface.OK),
        ({"batch": 0, "keys": None}, interface.OK),
    ],
)
def test_matchers_reject_invalid_arguments(op: str, changes: dict[str, Any], code: int) -> None:
    assert library.prepare(op, matcher_arguments(op, **changes))[0] == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"type": 3}, interface.BAD_TYPE),
        ({"tokens": 32769}, interface.TOO_MANY_TOKENS),
        ({"width": -1}, interface.BAD_SHAPE),
        ({"dim": HUGE}, interface.BAD_SHAPE),
        ({"batch": 2**30}, interface.BATCH_TOO_LARGE),
        ({"x": None}, interface.NO_POINTER),
        ({"trace": None}, interface.NO_POINTER),
        ({"trace": None, "new_trace": None, "patches": 0}, interface.OK),
        ({"x": 4097}, interface.MISALIGNED),
        ({"new_trace": 4100}, interface.MISALIGNED),
    ],
)
def test_the_reducer_rejects_invalid_arguments(changes: dict[str, Any], code: int) -> None:
    assert library.prepare("reduce", reduce_arguments(**changes))[0] == code


def test_only_tome_limits_protected_tokens() -> None:
    def code(op: str, protected: int) -> int:
        return library.prepare(op, matcher_arguments(op, protected_tokens=protected))[0]

    assert code("match_tome", 2) == interface.OK
    assert code("match_tome", 3) == interface.BAD_PROTECTED
    assert code("match_pitome", 3) == interface.OK
    assert code("match_pitome", -1) == interface.BAD_PROTECTED


@pytest.mark.parametrize("op", MATCHERS)
def test_empty_work_launches_nothing(op: str) -> None:
    for changes in ({"batch": 0}, {"tokens": 0}):
        of = matcher_arguments(op, **changes)
        assert launched(op, of).blocks == 0
        library.run(op, of)
    library.run("reduce", reduce_arguments(width=0, patches=0))


def test_every_error_code_has_a_message() -> None:
    messages = [library.text(code) for code in range(10)]
    assert messages[interface.OK] == "no error"
    assert len(set(messages)) == 10
    assert "1,024" in messages[interface.TOO_MANY_TOKENS]
    assert library.text(1700) == "an error of CUDA"


def test_workspace_size_is_that_of_the_unit_metric() -> None:
    assert library.workspace_bytes(2, 197, 64) == 2 * 197 * 64 * 4
    assert library.workspace_bytes(2, 197, 61) == 2 * 197 * 64 * 4
    for shape in ((-1, 2, 2), (2, 1025, 2), (2, 2, 0), (2, 2, HUGE)):
        assert library.workspace_bytes(*shape) == 0
