"""Tests of the plugins' TensorRT interface: attributes, types, shapes, lifetimes, errors."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.native.cuda_host import interface, tensorrt, tensorrt_ops
from tests.native.cuda_host.library import needs_compiler
from tests.native.cuda_host.tensorrt_interface import (
    FLOAT_FIELD,
    INT_FIELD,
    LONG_FIELD,
    RUNTIME,
    VECTORS,
    Attributes,
    Desc,
    Sizes,
    desc,
)
from tests.native.cuda_host.tensorrt_ops import Plugin, PluginError
from tokenfold.bundle.meter_workload import even_widths
from tokenfold.bundle.pair_workload import pumer_widths
from tokenfold.bundle.workload import clamp
from tokenfold.export.ops.functions import EXACT, PLUGIN_ATTRIBUTES, functions
from tokenfold.runtime.libraries import DOMAIN

pytestmark = needs_compiler

HUGE = 2**63 - 1
OPS: dict[str, Attributes] = {
    "Attend": {"heads": 2, "scale": 0.5},
    "AttendPacked": {"heads": 2, "scale": 0.5},
    "Importance": {"heads": 2, "scale": 0.5},
    "MatchToMe": {"heads": 2, "protected": 1},
    "MatchToMePacked": {"heads": 2, "protected": 1},
    "MatchPiToMe": {"heads": 2, "protected": 1, "margin": 0.25},
    "MatchPiToMePacked": {"heads": 2, "protected": 1, "margin": 0.25},
    "MatchPuMer": {"heads": 2},
    "Reduce": {"protected": 1},
}
# Types, shapes and counts of each op's inputs, for 2 images of 5 tokens of 12 channels.
F16, F32, I64 = torch.float16, torch.float32, torch.int64
ROWS, SIZES = (2, 5, 12), (2, 5)
TAKES: dict[str, tuple[list[torch.dtype], list[tuple[int, ...]], list[list[int]]]] = {
    "Attend": ([F16, F16, F16, F32], [(2, 3, 12), ROWS, ROWS, SIZES], []),
    "AttendPacked": ([F16, F32], [ROWS, SIZES], []),
    "Importance": ([F16, F16, F32, F32], [(2, 3, 12), ROWS, SIZES, (2, 3)], [[3]]),
    **dict.fromkeys([op for op in OPS if "ToMe" in op], ([F16, F32], [ROWS, SIZES], [[2]])),
    "MatchPuMer": ([F16, F32, F32], [ROWS, SIZES, SIZES], [[2], [1, 0, 1]]),
    "Reduce": ([F16, F32, I64, I64], [ROWS, SIZES, SIZES, (2, 9)], [[2]]),
}
# Dynamic sizes (input, axis) that no other size must equal.
FREE = {"Attend": {(0, 1)}, "Reduce": {(0, 2), (3, 1)}}
each_op = pytest.mark.parametrize("op", OPS)


def described(op: str) -> tuple[Plugin, list[Desc], list[Desc]]:
    """Return an op's plugin, with descriptions of its inputs and outputs."""
    types, shapes, counts = TAKES[op]
    plugin = Plugin.create(op, OPS[op])
    given_ = [desc(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    outputs = zip(plugin.shapes(shapes, counts), plugin.types(types), strict=True)
    return plugin, given_, [desc(shape, dtype) for shape, dtype in outputs]


def test_the_library_has_all_ops_except_linear_layers() -> None:
    actual = list(tensorrt_ops.creators())
    version, namespace = PLUGIN_ATTRIBUTES["plugin_version"], PLUGIN_ATTRIBUTES["plugin_namespace"]
    assert all(creator[1:] == (version, namespace) for creator in actual)
    assert namespace == DOMAIN
    names = [name for name, _, _ in actual]
    assert len(set(names)) == len(names)
    assert set(names) == {op for op in functions() if not op.startswith("Linear")} == set(OPS)


@each_op
def test_attributes_match_the_portable_body(op: str) -> None:
    expected = set(functions()[op].attribute) - set(PLUGIN_ATTRIBUTES)
    actual = dict(tensorrt_ops.names(op))
    assert set(actual) == expected == set(OPS[op])
    for name, kind in actual.items():
        assert kind == (FLOAT_FIELD if name in {"scale", "margin"} else INT_FIELD)


def test_the_library_has_the_entry_points_tensorrt_needs() -> None:
    loaded = ctypes.CDLL(str(tensorrt.build()))
    for entry in ("getCreators", "setLoggerFinder", "TokenfoldTensorRtProblem"):
        assert getattr(loaded, entry)
    count = ctypes.c_int32()
    loaded.getCreators(ctypes.byref(count))
    assert count.value == len(OPS)


def width(tokens: int, r: int, protected: int) -> int:
    """Return the number of tokens that `Reduce` leaves."""
    plugin = Plugin.create("Reduce", {"protected": protected})
    shapes = [(3, tokens, 8), (3, tokens), (3, tokens), (3, 9)]
    y, size, trace = plugin.shapes(shapes, [[r]])
    assert (y[0], y[2], trace) == (3, 8, (3, 9))
    assert size == y[:2]
    return y[1]


any_count = st.one_of(st.integers(-5, 2000), st.integers(-HUGE - 1, HUGE))


@given(tokens=st.integers(0, 1500), r=any_count, protected=st.integers(0, 5))
def test_width_of_one_layer_equals_that_of_the_workload(
    tokens: int, r: int, protected: int
) -> None:
    assert width(tokens, r, protected) == tokens - clamp(r, tokens, protected)
    assert width(tokens, r, EXACT) == tokens - min(max(r, 0), tokens)


@given(tokens=st.integers(1, 600), r=st.integers(0, 99), layers=st.integers(1, 6))
def test_widths_of_layers_equal_those_of_the_workload(tokens: int, r: int, layers: int) -> None:
    widths = [tokens]
    for _ in range(layers):
        widths.append(width(widths[-1], r, 1))
    assert widths == even_widths(tokens, r, layers)


@given(
    text=st.integers(0, 60),
    image=st.integers(1, 600),
    counts=st.tuples(*[st.integers(0, 700)] * 3),
)
def test_widths_of_pairs_equal_those_of_the_workload(
    text: int, image: int, counts: tuple[int, int, int]
) -> None:
    left = sum(pumer_widths(text, image, counts))
    assert width(text + image, text + image - left, EXACT) == left


@given(tokens=st.integers(0, 1500), text=any_count, counts=st.tuples(*[any_count] * 3))
def test_extra_outputs_encode_clamped_counts(
    tokens: int, text: int, counts: tuple[int, int, int]
) -> None:
    def encoded(count: int) -> tuple[int]:
        return (min(max(count, 0), tokens) + 1,)

    shapes = [(2, tokens, 4), (2, tokens), (2, tokens)]
    pumer = Plugin.create("MatchPuMer", OPS["MatchPuMer"])
    slots, *count_shapes = pumer.shapes(shapes, [[text], counts])
    assert slots == (2, tokens)
    assert count_shapes == [encoded(count) for count in (text, *counts)]
    matcher = Plugin.create("MatchToMe", OPS["MatchToMe"])
    assert matcher.shapes(shapes[:2], [[text]]) == [(2, tokens), encoded(text)]
    # `tokens` queries and 7 keys.
    importance = Plugin.create("Importance", OPS["Importance"])
    shapes = [(2, tokens, 4), (2, 7, 4), (2, 7), (2, tokens)]
    assert importance.shapes(shapes, [[text]]) == [(2, 7), encoded(text)]


@given(
    tokens=st.tuples(st.integers(0, 600), st.integers(0, 600)),
    counts=st.tuples(st.integers(0, 600), st.integers(0, 600)),
    protected=st.integers(0, 3),
)
def test_bounds_of_widths_are_tight(
    tokens: tuple[int, int], counts: tuple[int, int], protected: int
) -> None:
    # TensorRT plans memory by bounds alone, and errors would add up over the layers.
    minimum, maximum = sorted(tokens)
    plugin = Plugin.create("Reduce", {"protected": protected})
    shapes: list[tuple[Sizes, Sizes]] = [
        ((1, minimum, 8), (1, maximum, 8)),
        ((1, minimum), (1, maximum)),
        ((1, minimum), (1, maximum)),
        ((1, 9), (1, 9)),
    ]
    y, _, _ = plugin.bounds(shapes, [([min(counts)], [max(counts)])])
    assert y[0][1] == minimum - clamp(max(counts), minimum, protected)
    assert y[1][1] == maximum - clamp(min(counts), maximum, protected)


@pytest.mark.parametrize("op", [op for op in OPS if "Match" in op or op == "Importance"])
@given(sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 1024)), min_size=2, max_size=2))
def test_smaller_shapes_need_no_more_workspace(op: str, sizes: list[tuple[int, int]]) -> None:
    plugin, inputs, outputs = described(op)
    needed = []
    for batch, tokens in (map(min, zip(*sizes, strict=True)), map(max, zip(*sizes, strict=True))):
        for item in inputs:
            item.dims.sizes[0], item.dims.sizes[1] = batch, tokens
        plugin.configure(inputs, outputs)
        needed.append(plugin.workspace(inputs, outputs))
    assert 0 < needed[0] <= needed[1]


@each_op
def test_copies_outlive_the_original_plugin(op: str) -> None:
    plugin = Plugin.create(op, OPS[op])
    text = plugin.text
    for name, value in OPS[op].items():
        assert f"{name}={value} " in text
    for copy in (Plugin.clone, Plugin.attach):
        other = copy(plugin)
        fields = other.serialized()
        assert other.text == text
        del plugin
        plugin = Plugin.create(op, fields, RUNTIME)
        assert plugin.text == text


def test_different_attributes_have_different_texts() -> None:
    # TensorRT looks up timings by this text.
    scales = torch.tensor([0.3, torch.nextafter(torch.tensor(0.3), torch.tensor(1.0))]).tolist()
    one, other = (Plugin.create("Attend", {"heads": 2, "scale": scale}) for scale in scales)
    assert one.text != other.text


def longs(*values: int) -> tuple[int, Any]:
    return LONG_FIELD, (ctypes.c_int64 * len(values))(*values)


def test_int64_attributes_are_accepted() -> None:
    plugin = Plugin.create("MatchToMe", {"heads": longs(3), "protected": longs(2), "other": 1.0})
    assert plugin.text == "heads=3 protected=2 "


@pytest.mark.parametrize(
    ("op", "changed", "what"),
    [
        ("Attend", {"heads": None}, "heads is missing"),
        ("Attend", {"scale": None}, "scale is missing"),
        ("MatchPiToMe", {"margin": None}, "margin is missing"),
        ("Attend", {"heads": 2.0}, "heads is a whole number"),
        ("Attend", {"scale": 1}, "scale is a real number"),
        ("Attend", {"heads": longs(1, 2)}, "heads is one number"),
        ("Attend", {"heads": longs()}, "heads is one number"),
        ("Attend", {"heads": 0}, "heads is from 1 to 2147483647, not 0"),
        ("MatchPuMer", {"heads": -1}, "heads is from 1"),
        ("AttendPacked", {"heads": longs(2**32 + 1)}, "not 4294967297"),
        ("Reduce", {"protected": -2}, "protected is from -1"),
        ("Reduce", {"protected": longs(2**40)}, "protected is from -1"),
        ("MatchToMe", {"protected": 3}, "protected is from 0 to 2, not 3"),
        ("MatchToMePacked", {"protected": EXACT}, "protected is from 0 to 2, not -1"),
        ("MatchPiToMe", {"protected": EXACT}, "protected is from 0"),
    ],
)
def test_invalid_attributes_are_rejected(op: str, changed: Attributes, what: str) -> None:
    attributes = {
        name: value for name, value in {**OPS[op], **changed}.items() if value is not None
    }
    with pytest.raises(PluginError, match=f"^{op}: the attribute .*{what}"):
        Plugin.create(op, attributes)


@each_op
def test_wrong_numbers_of_tensors_are_rejected(op: str) -> None:
    plugin, inputs, outputs = described(op)
    types, shapes, counts = TAKES[op]
    message = rf"^{op}: it takes {len(inputs)} inputs and gives {len(outputs)} outputs, not"
    for fewer, out in ((inputs[1:], outputs), (inputs, outputs[1:]), ([], outputs)):
        for method in (plugin.configure, plugin.change):
            with pytest.raises(PluginError, match=message):
                method(fewer, out)
    assert not plugin.supports(0, [*inputs, *outputs[1:]], len(inputs))
    with pytest.raises(PluginError, match=message):
        plugin.types(types[1:])
    with pytest.raises(PluginError, match=message):
        plugin.types(types, outputs=9)
    with pytest.raises(PluginError, match=message):
        plugin.shapes(shapes[1:], counts)
    with pytest.raises(PluginError, match=f"{op}: it takes {len(counts)} shape inputs, not 3"):
        plugin.shapes(shapes, [[1]] * 3)
    if counts:
        with pytest.raises(PluginError, match=r"shape input \d is of \d numbers, not 0"):
            plugin.shapes(shapes, [[]] * len(counts))


@each_op
def test_shape_inputs_may_follow_the_other_inputs(op: str) -> None:
    plugin, inputs, outputs = described(op)
    counts = [desc((len(count),), I64) for count in TAKES[op][2]]
    all_ = [*inputs, *counts, *outputs]
    input_count = len(inputs) + len(counts)
    assert all(plugin.supports(index, all_, input_count) for index in range(len(all_)))
    plugin.configure([*inputs, *counts], outputs)
    plugin.change([*inputs, *counts], outputs)


@each_op
def test_wrong_types_and_formats_are_rejected(op: str) -> None:
    plugin, inputs, outputs = described(op)
    types = TAKES[op][0]
    all_ = [*inputs, *outputs]
    for index in range(len(all_)):
        assert plugin.supports(index, all_, len(inputs))
        for other in ({"type": 3}, {"format": VECTORS}):
            changed = [Desc.from_buffer_copy(item) for item in all_]
            for name, value in other.items():
                setattr(changed[index], name, value)
            assert not plugin.supports(index, changed, len(inputs))
    for index in range(len(types)):
        wrong = [torch.int32 if i == index else dtype for i, dtype in enumerate(types)]
        with pytest.raises(PluginError, match=f"^{op}: input {index} is (float32|int64)"):
            plugin.types(wrong)


def test_all_tokens_have_one_type() -> None:
    plugin, inputs, outputs = described("Attend")
    with pytest.raises(PluginError, match="input 2 is float32, float16 or bfloat16, as all"):
        plugin.types([F16, F16, F32, F32])
    inputs[1] = desc(ROWS, F32)
    assert not plugin.supports(1, [*inputs, *outputs], len(inputs))


@each_op
def test_mismatched_shapes_are_rejected(op: str) -> None:
    plugin, inputs, outputs = described(op)
    all_ = {(i, axis) for i, item in enumerate(inputs) for axis in range(item.dims.count)}
    for index, axis in sorted(all_ - FREE.get(op, set())):
        changed = [Desc.from_buffer_copy(item) for item in inputs]
        changed[index].dims.sizes[axis] += 1
        with pytest.raises(
            PluginError, match=rf"^{op}: axis \d of input \d is (a multiple of )?\d"
        ):
            plugin.change(changed, outputs)
    short = [Desc.from_buffer_copy(item) for item in inputs]
    short[-1].dims.count = 1
    for method in (plugin.configure, plugin.change):
        with pytest.raises(PluginError, match=rf"^{op}: input {len(inputs) - 1} has 2 axes, not 1"):
            method(short, outputs)
    shapes = [item.dims.tuple for item in short]
    with pytest.raises(PluginError, match="has 2 axes, not 1"):
        plugin.shapes(shapes, TAKES[op][2])


def test_channels_must_be_a_multiple_of_heads() -> None:
    plugin, inputs, outputs = described("MatchToMePacked")
    inputs[0].dims.sizes[2] = 14
    with pytest.raises(PluginError, match="axis 2 of input 0 is a multiple of 6, not 14"):
        plugin.configure(inputs, outputs)


def test_shapes_without_a_kernel_fail_the_build() -> None:
    plugin, inputs, outputs = described("MatchToMe")
    for item in (*inputs, outputs[0]):
        item.dims.sizes[1] = interface.MOST_TOKENS + 1
    with pytest.raises(
        PluginError, match="MatchToMe: an image has too many tokens: matching takes"
    ):
        plugin.configure(inputs, outputs)
    plugin, inputs, outputs = described("Attend")
    for item in (*inputs[:3], outputs[0]):
        item.dims.sizes[2] = 2 * 257
    with pytest.raises(PluginError, match="heads of up to 256"):
        plugin.configure(inputs, outputs)


def test_kernel_errors_are_reported() -> None:
    plugin, inputs, outputs = described("MatchToMe")
    rows, sizes, slots = torch.zeros(ROWS, dtype=F16), torch.zeros(SIZES), torch.zeros(SIZES)
    given_ = [rows.data_ptr(), sizes.data_ptr()]
    with pytest.raises(PluginError, match=rf"a pointer is null .code {interface.NO_POINTER}"):
        plugin.enqueue((inputs, outputs), (given_, [None, None]), rows.data_ptr())
    pointers = (given_, [slots.data_ptr(), None])
    with pytest.raises(PluginError, match=rf"workspace is null.*code {interface.BAD_WORKSPACE}"):
        plugin.enqueue((inputs, outputs), pointers, None)
    inputs[0].type = 5
    with pytest.raises(PluginError, match=rf"type is float32.*code {interface.BAD_TYPE}"):
        plugin.enqueue((inputs, outputs), pointers, rows.data_ptr())


def test_failed_allocations_are_errors() -> None:
    plugin, before = Plugin.create("Attend", OPS["Attend"]), tensorrt_ops.allocations()
    with tensorrt_ops.out_of_memory():
        for make in (plugin.clone, plugin.attach, lambda: Plugin.create("Attend", OPS["Attend"])):
            with pytest.raises(PluginError, match="Attend: there is no memory"):
                make()
    assert tensorrt_ops.allocations() > before
    assert plugin.clone().text == plugin.text


def test_an_error_is_reported_once_per_thread() -> None:
    assert tensorrt_ops.problem() == ""
    for op in ("Attend", "Reduce"):
        assert tensorrt_ops.load().tokenfold_host_create(op.encode(), None, 0) is None
    elsewhere: list[str] = []
    thread = threading.Thread(target=lambda: elsewhere.append(tensorrt_ops.problem()))
    thread.start()
    thread.join()
    assert elsewhere == [""]
    assert tensorrt_ops.problem() == "Reduce: the attribute protected is missing"
    assert tensorrt_ops.problem() == ""


def test_long_messages_are_truncated() -> None:
    name = "n" * 1000
    with pytest.raises(PluginError, match=r"^Attend: the attribute heads is missing$"):
        Plugin.create("Attend", {name: 1})
