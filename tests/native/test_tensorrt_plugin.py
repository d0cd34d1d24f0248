"""What TensorRT asks of the plugins: attributes, types, shapes, lifetimes, and what is refused."""

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
from tokenfold.bundle.pair_workload import even_widths, pumer_widths
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
# Of 2 images of 5 tokens of 12 channels, what an op takes: types, shapes, counts.
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
# Sizes (input, axis) that may be any.
FREE = {"Attend": {(0, 1)}, "Reduce": {(0, 2), (3, 1)}}
each_op = pytest.mark.parametrize("op", OPS)


def described(op: str) -> tuple[Plugin, list[Desc], list[Desc]]:
    """An op's plugin, and the tensors that it takes and gives."""
    types, shapes, counts = TAKES[op]
    own = Plugin.create(op, OPS[op])
    given_ = [desc(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    made = zip(own.shapes(shapes, counts), own.types(types), strict=True)
    return own, given_, [desc(shape, dtype) for shape, dtype in made]


def test_the_library_has_all_ops_but_linear_layers() -> None:
    found = list(tensorrt_ops.creators())
    version, namespace = PLUGIN_ATTRIBUTES["plugin_version"], PLUGIN_ATTRIBUTES["plugin_namespace"]
    assert all(each[1:] == (version, namespace) for each in found)
    assert namespace == DOMAIN
    names = [name for name, _, _ in found]
    assert len(set(names)) == len(names)
    assert set(names) == {op for op in functions() if not op.startswith("Linear")} == set(OPS)


@each_op
def test_attributes_are_those_of_the_body(op: str) -> None:
    wanted = set(functions()[op].attribute) - set(PLUGIN_ATTRIBUTES)
    found = dict(tensorrt_ops.names(op))
    assert set(found) == wanted == set(OPS[op])
    for name, kind in found.items():
        assert kind == (FLOAT_FIELD if name in {"scale", "margin"} else INT_FIELD)


def test_the_library_that_tensorrt_loads_has_what_it_asks_for() -> None:
    loaded = ctypes.CDLL(str(tensorrt.build()))
    for entry in ("getCreators", "setLoggerFinder", "TokenfoldTensorRtProblem"):
        assert getattr(loaded, entry)
    count = ctypes.c_int32()
    loaded.getCreators(ctypes.byref(count))
    assert count.value == len(OPS)


def width(tokens: int, r: int, protected: int) -> int:
    """What `Reduce` says will be left."""
    own = Plugin.create("Reduce", {"protected": protected})
    shapes = [(3, tokens, 8), (3, tokens), (3, tokens), (3, 9)]
    y, size, trace = own.shapes(shapes, [[r]])
    assert (y[0], y[2], trace) == (3, 8, (3, 9))
    assert size == y[:2]
    return y[1]


any_count = st.one_of(st.integers(-5, 2000), st.integers(-HUGE - 1, HUGE))


@given(tokens=st.integers(0, 1500), r=any_count, protected=st.integers(0, 5))
def test_as_many_tokens_are_left_as_a_workload_counts(tokens: int, r: int, protected: int) -> None:
    assert width(tokens, r, protected) == tokens - clamp(r, tokens, protected)
    assert width(tokens, r, EXACT) == tokens - min(max(r, 0), tokens)


@given(tokens=st.integers(1, 600), r=st.integers(0, 99), layers=st.integers(1, 6))
def test_layers_leave_what_a_workload_counts(tokens: int, r: int, layers: int) -> None:
    found = [tokens]
    for _ in range(layers):
        found.append(width(found[-1], r, 1))
    assert found == even_widths(tokens, r, layers)


@given(
    text=st.integers(0, 60),
    image=st.integers(1, 600),
    counts=st.tuples(*[st.integers(0, 700)] * 3),
)
def test_pairs_leave_what_their_workload_counts(
    text: int, image: int, counts: tuple[int, int, int]
) -> None:
    left = sum(pumer_widths(text, image, counts))
    assert width(text + image, text + image - left, EXACT) == left


@given(tokens=st.integers(0, 1500), text=any_count, counts=st.tuples(*[any_count] * 3))
def test_counts_are_noted_as_far_as_they_matter(
    tokens: int, text: int, counts: tuple[int, int, int]
) -> None:
    def noted(count: int) -> tuple[int]:
        return (min(max(count, 0), tokens) + 1,)

    shapes = [(2, tokens, 4), (2, tokens), (2, tokens)]
    pumer = Plugin.create("MatchPuMer", OPS["MatchPuMer"])
    slots, *found = pumer.shapes(shapes, [[text], counts])
    assert slots == (2, tokens)
    assert found == [noted(count) for count in (text, *counts)]
    matcher = Plugin.create("MatchToMe", OPS["MatchToMe"])
    assert matcher.shapes(shapes[:2], [[text]]) == [(2, tokens), noted(text)]
    # Of as many queries as are tokens above, among 7 keys.
    importance = Plugin.create("Importance", OPS["Importance"])
    shapes = [(2, tokens, 4), (2, 7, 4), (2, 7), (2, tokens)]
    assert importance.shapes(shapes, [[text]]) == [(2, 7), noted(text)]


@given(
    tokens=st.tuples(st.integers(0, 600), st.integers(0, 600)),
    counts=st.tuples(st.integers(0, 600), st.integers(0, 600)),
    protected=st.integers(0, 3),
)
def test_bounds_of_what_is_left_are_close(
    tokens: tuple[int, int], counts: tuple[int, int], protected: int
) -> None:
    # TensorRT reckons with bounds alone where it plans memory, and layers follow upon layers.
    least, most = sorted(tokens)
    own = Plugin.create("Reduce", {"protected": protected})
    shapes: list[tuple[Sizes, Sizes]] = [
        ((1, least, 8), (1, most, 8)),
        ((1, least), (1, most)),
        ((1, least), (1, most)),
        ((1, 9), (1, 9)),
    ]
    y, _, _ = own.bounds(shapes, [([min(counts)], [max(counts)])])
    assert y[0][1] == least - clamp(max(counts), least, protected)
    assert y[1][1] == most - clamp(min(counts), most, protected)


@pytest.mark.parametrize("op", [op for op in OPS if "Match" in op or op == "Importance"])
@given(sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 1024)), min_size=2, max_size=2))
def test_smaller_shapes_need_no_more_workspace(op: str, sizes: list[tuple[int, int]]) -> None:
    own, inputs, outputs = described(op)
    needed = []
    for batch, tokens in (map(min, zip(*sizes, strict=True)), map(max, zip(*sizes, strict=True))):
        for each in inputs:
            each.dims.sizes[0], each.dims.sizes[1] = batch, tokens
        own.configure(inputs, outputs)
        needed.append(own.workspace(inputs, outputs))
    assert 0 < needed[0] <= needed[1]


@each_op
def test_a_plugin_outlives_the_one_that_it_was_made_from(op: str) -> None:
    own = Plugin.create(op, OPS[op])
    text = own.text
    for name, value in OPS[op].items():
        assert f"{name}={value} " in text
    for of in (Plugin.clone, Plugin.attach):
        other = of(own)
        kept = other.serialized()
        assert other.text == text
        del own
        own = Plugin.create(op, kept, RUNTIME)
        assert own.text == text


def test_attributes_that_differ_in_a_bit_differ_in_their_text() -> None:
    # By which TensorRT finds timings again.
    scales = torch.tensor([0.3, torch.nextafter(torch.tensor(0.3), torch.tensor(1.0))]).tolist()
    one, other = (Plugin.create("Attend", {"heads": 2, "scale": scale}) for scale in scales)
    assert one.text != other.text


def longs(*values: int) -> tuple[int, Any]:
    return LONG_FIELD, (ctypes.c_int64 * len(values))(*values)


def test_long_attributes_are_taken() -> None:
    own = Plugin.create("MatchToMe", {"heads": longs(3), "protected": longs(2), "other": 1.0})
    assert own.text == "heads=3 protected=2 "


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
def test_attributes_that_are_no_ops_are_refused(op: str, changed: Attributes, what: str) -> None:
    attributes = {
        name: value for name, value in {**OPS[op], **changed}.items() if value is not None
    }
    with pytest.raises(PluginError, match=f"^{op}: the attribute .*{what}"):
        Plugin.create(op, attributes)


@each_op
def test_any_other_number_of_tensors_is_refused(op: str) -> None:
    own, inputs, outputs = described(op)
    types, shapes, counts = TAKES[op]
    told = rf"^{op}: it takes {len(inputs)} inputs and gives {len(outputs)} outputs, not"
    for fewer, out in ((inputs[1:], outputs), (inputs, outputs[1:]), ([], outputs)):
        for method in (own.configure, own.change):
            with pytest.raises(PluginError, match=told):
                method(fewer, out)
    assert not own.takes(0, [*inputs, *outputs[1:]], len(inputs))
    with pytest.raises(PluginError, match=told):
        own.types(types[1:])
    with pytest.raises(PluginError, match=told):
        own.types(types, outputs=9)
    with pytest.raises(PluginError, match=told):
        own.shapes(shapes[1:], counts)
    with pytest.raises(PluginError, match=f"{op}: it takes {len(counts)} shape inputs, not 3"):
        own.shapes(shapes, [[1]] * 3)
    if counts:
        with pytest.raises(PluginError, match=r"shape input \d is of \d numbers, not 0"):
            own.shapes(shapes, [[]] * len(counts))


@each_op
def test_shape_inputs_may_come_with_the_others(op: str) -> None:
    own, inputs, outputs = described(op)
    counts = [desc((len(count),), I64) for count in TAKES[op][2]]
    all_ = [*inputs, *counts, *outputs]
    told = len(inputs) + len(counts)
    assert all(own.takes(at, all_, told) for at in range(len(all_)))
    own.configure([*inputs, *counts], outputs)
    own.change([*inputs, *counts], outputs)


@each_op
def test_tensors_of_other_types_are_refused(op: str) -> None:
    own, inputs, outputs = described(op)
    types = TAKES[op][0]
    all_ = [*inputs, *outputs]
    for at in range(len(all_)):
        assert own.takes(at, all_, len(inputs))
        for other in ({"type": 3}, {"format": VECTORS}):
            changed = [Desc.from_buffer_copy(each) for each in all_]
            for name, value in other.items():
                setattr(changed[at], name, value)
            assert not own.takes(at, changed, len(inputs))
    for at in range(len(types)):
        wrong = [torch.int32 if i == at else dtype for i, dtype in enumerate(types)]
        with pytest.raises(PluginError, match=f"^{op}: input {at} is (float32|int64)"):
            own.types(wrong)


def test_all_tokens_are_of_one_type() -> None:
    own, inputs, outputs = described("Attend")
    with pytest.raises(PluginError, match="input 2 is float32, float16 or bfloat16, as all"):
        own.types([F16, F16, F32, F32])
    inputs[1] = desc(ROWS, F32)
    assert not own.takes(1, [*inputs, *outputs], len(inputs))


@each_op
def test_shapes_that_do_not_fit_are_refused(op: str) -> None:
    own, inputs, outputs = described(op)
    all_ = {(i, axis) for i, each in enumerate(inputs) for axis in range(each.dims.count)}
    for at, axis in sorted(all_ - FREE.get(op, set())):
        changed = [Desc.from_buffer_copy(each) for each in inputs]
        changed[at].dims.sizes[axis] += 1
        with pytest.raises(
            PluginError, match=rf"^{op}: axis \d of input \d is (a multiple of )?\d"
        ):
            own.change(changed, outputs)
    short = [Desc.from_buffer_copy(each) for each in inputs]
    short[-1].dims.count = 1
    for method in (own.configure, own.change):
        with pytest.raises(PluginError, match=rf"^{op}: input {len(inputs) - 1} has 2 axes, not 1"):
            method(short, outputs)
    shapes = [each.dims.tuple for each in short]
    with pytest.raises(PluginError, match="has 2 axes, not 1"):
        own.shapes(shapes, TAKES[op][2])


def test_channels_that_do_not_split_into_heads_end_a_build() -> None:
    own, inputs, outputs = described("MatchToMePacked")
    inputs[0].dims.sizes[2] = 14
    with pytest.raises(PluginError, match="axis 2 of input 0 is a multiple of 6, not 14"):
        own.configure(inputs, outputs)


def test_shapes_that_no_kernel_takes_end_a_build() -> None:
    own, inputs, outputs = described("MatchToMe")
    for each in (*inputs, outputs[0]):
        each.dims.sizes[1] = interface.MOST_TOKENS + 1
    with pytest.raises(
        PluginError, match="MatchToMe: an image has too many tokens: matching takes"
    ):
        own.configure(inputs, outputs)
    own, inputs, outputs = described("Attend")
    for each in (*inputs[:3], outputs[0]):
        each.dims.sizes[2] = 2 * 257
    with pytest.raises(PluginError, match="heads of up to 256"):
        own.configure(inputs, outputs)


def test_what_a_kernel_refuses_is_told() -> None:
    own, inputs, outputs = described("MatchToMe")
    rows, sizes, slots = torch.zeros(ROWS, dtype=F16), torch.zeros(SIZES), torch.zeros(SIZES)
    given_ = [rows.data_ptr(), sizes.data_ptr()]
    with pytest.raises(PluginError, match=rf"a pointer is null .code {interface.NO_POINTER}"):
        own.enqueue((inputs, outputs), (given_, [None, None]), rows.data_ptr())
    pointers = (given_, [slots.data_ptr(), None])
    with pytest.raises(PluginError, match=rf"workspace is null.*code {interface.BAD_WORKSPACE}"):
        own.enqueue((inputs, outputs), pointers, None)
    inputs[0].type = 5
    with pytest.raises(PluginError, match=rf"type is float32.*code {interface.BAD_TYPE}"):
        own.enqueue((inputs, outputs), pointers, rows.data_ptr())


def test_without_memory_there_is_no_plugin_and_no_end() -> None:
    own, before = Plugin.create("Attend", OPS["Attend"]), tensorrt_ops.allocations()
    with tensorrt_ops.out_of_memory():
        for make in (own.clone, own.attach, lambda: Plugin.create("Attend", OPS["Attend"])):
            with pytest.raises(PluginError, match="Attend: there is no memory"):
                make()
    assert tensorrt_ops.allocations() > before
    assert own.clone().text == own.text


def test_a_problem_is_told_once_and_where_it_was() -> None:
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


def test_a_long_name_leaves_room_for_no_more() -> None:
    name = "n" * 1000
    with pytest.raises(PluginError, match=r"^Attend: the attribute heads is missing$"):
        Plugin.create("Attend", {name: 1})
