"""What ONNX Runtime's ops for CUDA hand to the kernels, run on this machine's processor."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from export.plugins.functions import DOMAIN, EXACT, OPSET, VERSION, functions
from tests.cuda_host import registered
from tests.cuda_host.library import needs_compiler
from tests.op_graphs import FLOAT, HALF, WHOLE, needs_library, node, value

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
pytestmark = [needs_compiler, needs_library]  # without the library there are no headers either

KINDS = {"float32": FLOAT, "float16": HALF, "bfloat16": TensorProto.BFLOAT16}
TOLERANCES = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
SHAPES: dict[str, tuple[str | int, ...]] = {
    **dict.fromkeys(("k", "v", "keys", "x"), ("B", "N", "D")),
    **dict.fromkeys(("size", "importance"), ("B", "N")),
    "q": ("B", "Q", "D"),
    "qkv": ("B", "N", "W"),
    "query_size": ("B", "Q"),
    "trace": ("B", "P"),
    **dict.fromkeys(("r", "queries", "text"), (1,)),
    "counts": (3,),
}
ROUNDED = {"q", "k", "v", "qkv", "keys", "x", "out", "y"}
WHOLES = {"trace", "r", "queries", "text", "counts", "slots", "other_slots", "new_trace"}


def attention() -> list[NodeProto]:
    attributes = {"heads": 2, "scale": 0.3}
    asked = ["q", "k", "size", "query_size", "queries"]
    return [
        node("Attend", ["q", "k", "v", "size"], ["out"], **attributes),
        node("Importance", asked, ["importance"], **attributes),
    ]


def reducing(kind: str, inputs: list[str], left: int, **attributes: float) -> list[NodeProto]:
    moved = ["x", "size", "slots", "r", "trace"]
    return [
        node(kind, ["keys", "size", *inputs], ["slots"], heads=2, **attributes),
        node("Reduce", moved, ["y", "new_size", "new_trace"], protected=left),
    ]


def packed() -> list[NodeProto]:
    matching = ["qkv", "size", "r"]
    return [
        node("AttendPacked", ["qkv", "size"], ["out"], heads=2, scale=0.3),
        node("MatchToMePacked", matching, ["slots"], heads=2, protected=1),
        node("MatchPiToMePacked", matching, ["other_slots"], heads=2, protected=1, margin=0.4),
    ]


GRAPHS = {
    "attention": attention(),
    "tome": reducing("MatchToMe", ["r"], 1, protected=1),
    "pitome": reducing("MatchPiToMe", ["r"], 2, protected=2, margin=0.4),
    "packed": packed(),
    "pumer": reducing("MatchPuMer", ["importance", "text", "counts"], EXACT),
}


@cache
def session(graph: str, kind: str, *, cuda: bool) -> ort.InferenceSession:
    """Ops on tensors that were rounded to `kind`; the portable bodies compute in float32."""
    nodes, own, bodies = GRAPHS[graph], [], functions()
    outputs = [name for each in nodes for name in each.output]
    inputs = dict.fromkeys(name for each in nodes for name in each.input if name not in outputs)
    for name in ROUNDED & set(inputs):
        own.append(helper.make_node("Cast", [name], [f"{name}_rounded"], to=KINDS[kind]))
        if not cuda:
            own.append(helper.make_node("Cast", [f"{name}_rounded"], [f"{name}_own"], to=FLOAT))
    suffix = "_rounded" if cuda else "_own"
    for each in nodes:
        copy = NodeProto()
        copy.CopyFrom(each)
        for names in (copy.input, copy.output):
            names[:] = [name + suffix if name in ROUNDED else name for name in names]
        own.append(copy)
    own += [
        helper.make_node("Cast", [name + suffix], [name], to=FLOAT)
        for name in ROUNDED & set(outputs)
    ]
    model = helper.make_model(
        helper.make_graph(
            own,
            "ops",
            [value(name, WHOLE if name in WHOLES else FLOAT, *SHAPES[name]) for name in inputs],
            [
                helper.make_tensor_value_info(name, WHOLE if name in WHOLES else FLOAT, None)
                for name in outputs
            ],
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[bodies[each.op_type] for each in nodes],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the processor plays one block of threads at a time
    options.log_severity_level = 3
    if cuda:
        options.register_custom_ops_library(str(registered.build()))
    return ort.InferenceSession(model.SerializeToString(), options)


def drawn(graph: str, *, batch: int = 2, tokens: int = 23, **counts: list[int]) -> Feeds:
    """Inputs of a graph; the last image has two absent tokens."""
    draw = np.random.default_rng(tokens)
    axes = {"B": batch, "N": tokens, "Q": 9, "D": 32, "W": 96, "P": 30}
    feeds: Feeds = {}
    for each in session(graph, "float32", cuda=False).get_inputs():
        shape = [axes[axis] if isinstance(axis, str) else axis for axis in SHAPES[each.name]]
        if each.name in counts:
            feeds[each.name] = np.array(counts[each.name])
        elif each.name == "trace":
            feeds[each.name] = draw.integers(-1, tokens, shape)
        elif each.name.endswith("size"):
            feeds[each.name] = draw.integers(1, 4, shape).astype(np.float32)
            feeds[each.name][-1, -2:] = 0
        else:
            feeds[each.name] = draw.standard_normal(shape).astype(np.float32)
    return feeds


def check(graph: str, kind: str, feeds: Feeds) -> None:
    found = session(graph, kind, cuda=True).run(None, feeds)
    wanted = session(graph, kind, cuda=False).run(None, feeds)
    for own, other in zip(found, wanted, strict=True):
        if own.dtype == np.int64:
            np.testing.assert_array_equal(own, other)
        else:
            np.testing.assert_allclose(own, other, atol=TOLERANCES[kind])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("r", [0, 5])
def test_packed_tokens(kind: str, r: int) -> None:
    check("packed", kind, drawn("packed", r=[r]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [0, 4, 99])
def test_attention(kind: str, queries: int) -> None:
    check("attention", kind, drawn("attention", queries=[queries]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", ["tome", "pitome"])
def test_matchers(graph: str, kind: str) -> None:
    for r, tokens in itertools.product((0, 5, 99), (1, 23)):
        check(graph, kind, drawn(graph, tokens=tokens, r=[r]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "counts", "r"), [(6, [4, 3, 2], 9), (0, [0, 5, 9], 5), (6, [0, 0, 0], 0)]
)
def test_pumer(kind: str, text: int, counts: list[int], r: int) -> None:
    check("pumer", kind, drawn("pumer", text=[text], counts=counts, r=[r]))


def test_workspaces_grow_and_are_shared() -> None:
    for batch, tokens in ((1, 9), (5, 40), (2, 17)):
        check("tome", "float32", drawn("tome", batch=batch, tokens=tokens, r=[3]))
        check("pitome", "float16", drawn("pitome", batch=batch, tokens=tokens, r=[3]))


def test_what_the_kernels_refuse_becomes_an_error() -> None:
    with pytest.raises(InvalidArgument, match="too many tokens"):
        session("tome", "float32", cuda=True).run(None, drawn("tome", tokens=1025, r=[1]))


def test_shapes_that_do_not_fit_become_an_error() -> None:
    feeds = drawn("tome", r=[1])
    feeds["size"] = feeds["size"][:, 1:]
    with pytest.raises(InvalidArgument, match=r"size is \(B, N"):
        session("tome", "float32", cuda=True).run(None, feeds)
