"""Tests of ONNX Runtime's CUDA ops, with their kernels run on the CPU."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from tests.native.cuda_host import cublas_lt, registered
from tests.native.cuda_host.library import needs_compiler
from tests.native.op_graphs import FLOAT, HALF, WHOLE, needs_library, node, value
from tokenfold.export.ops.functions import EXACT, OPSET, VERSION, functions
from tokenfold.runtime.libraries import DOMAIN

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
pytestmark = [needs_compiler, needs_library]  # The headers come with the library.

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
    "w": ("D", "E"),
    "bias": ("E",),
    "residual": ("B", "N", "E"),
}
ROUNDED = {"q", "k", "v", "qkv", "keys", "x", "w", "bias", "residual", "out", "y"}
WHOLES = {"trace", "r", "queries", "text", "counts", "slots", "other_slots", "new_trace"}


def attention() -> list[NodeProto]:
    attributes = {"heads": 2, "scale": 0.3}
    importance_inputs = ["q", "k", "size", "query_size", "queries"]
    return [
        node("Attend", ["q", "k", "v", "size"], ["out"], **attributes),
        node("Importance", importance_inputs, ["importance"], **attributes),
    ]


def reducing(kind: str, inputs: list[str], left: int, **attributes: float) -> list[NodeProto]:
    reduce_inputs = ["x", "size", "slots", "r", "trace"]
    return [
        node(kind, ["keys", "size", *inputs], ["slots"], heads=2, **attributes),
        node("Reduce", reduce_inputs, ["y", "new_size", "new_trace"], protected=left),
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
    "linear": [node("Linear", ["x", "w", "bias"], ["y"])],
    "gelu": [node("LinearGelu", ["x", "w", "bias"], ["y"])],
    "add": [node("LinearAdd", ["x", "w", "bias", "residual"], ["y"])],
}


@cache
def session(graph: str, kind: str, *, cuda: bool) -> ort.InferenceSession:
    """Return a session whose CUDA ops run in `kind`, or whose portable bodies run in float32.

    Both get inputs that are rounded to `kind`.
    """
    nodes, rounded_nodes = GRAPHS[graph], []
    outputs = [name for op_node in nodes for name in op_node.output]
    inputs = dict.fromkeys(
        name for op_node in nodes for name in op_node.input if name not in outputs
    )
    for name in ROUNDED & set(inputs):
        rounded_nodes.append(helper.make_node("Cast", [name], [f"{name}_rounded"], to=KINDS[kind]))
        if not cuda:
            rounded_nodes.append(
                helper.make_node("Cast", [f"{name}_rounded"], [f"{name}_wide"], to=FLOAT)
            )
    suffix = "_rounded" if cuda else "_wide"
    for op_node in nodes:
        copy = NodeProto()
        copy.CopyFrom(op_node)
        for names in (copy.input, copy.output):
            names[:] = [name + suffix if name in ROUNDED else name for name in names]
        rounded_nodes.append(copy)
    rounded_nodes += [
        helper.make_node("Cast", [name + suffix], [name], to=FLOAT)
        for name in ROUNDED & set(outputs)
    ]
    rounded_graph = helper.make_graph(
        rounded_nodes,
        "ops",
        [value(name, WHOLE if name in WHOLES else FLOAT, *SHAPES[name]) for name in inputs],
        [
            helper.make_tensor_value_info(name, WHOLE if name in WHOLES else FLOAT, None)
            for name in outputs
        ],
    )
    return started(rounded_graph, {op_node.op_type for op_node in nodes}, cuda=cuda)


def started(graph: GraphProto, ops: set[str], *, cuda: bool) -> ort.InferenceSession:
    bodies = functions()
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[bodies[op] for op in ops],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # The CPU runs one block of threads at a time.
    options.log_severity_level = 3
    if cuda:
        options.register_custom_ops_library(str(registered.build()))
    return ort.InferenceSession(model.SerializeToString(), options)


def drawn(graph: str, *, batch: int = 2, tokens: int = 23, **counts: list[int]) -> Feeds:
    """Return random inputs of a graph; the last image has two absent tokens."""
    draw = np.random.default_rng(tokens)
    axes = {"B": batch, "N": tokens, "Q": 9, "D": 32, "E": 40, "W": 96, "P": 30}
    feeds: Feeds = {}
    for graph_input in session(graph, "float32", cuda=False).get_inputs():
        shape = [axes[axis] if isinstance(axis, str) else axis for axis in SHAPES[graph_input.name]]
        if graph_input.name in counts:
            feeds[graph_input.name] = np.array(counts[graph_input.name])
        elif graph_input.name == "trace":
            feeds[graph_input.name] = draw.integers(-1, tokens, shape)
        elif graph_input.name.endswith("size"):
            feeds[graph_input.name] = draw.integers(1, 4, shape).astype(np.float32)
            feeds[graph_input.name][-1, -2:] = 0
        else:
            feeds[graph_input.name] = draw.standard_normal(shape).astype(np.float32)
            if graph_input.name == "w":  # Keep the product no larger than the residual.
                feeds[graph_input.name] *= 32**-0.5
    return feeds


def check(
    graph: str, kind: str, feeds: Feeds, *, atol: float | None = None, rtol: float = 1e-7
) -> None:
    actual = session(graph, kind, cuda=True).run(None, feeds)
    expected = session(graph, kind, cuda=False).run(None, feeds)
    for output, reference in zip(actual, expected, strict=True):
        if output.dtype == np.int64:
            np.testing.assert_array_equal(output, reference)
        else:
            np.testing.assert_allclose(output, reference, atol=atol or TOLERANCES[kind], rtol=rtol)


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


def test_kernel_errors_become_exceptions() -> None:
    with pytest.raises(InvalidArgument, match="too many tokens"):
        session("tome", "float32", cuda=True).run(None, drawn("tome", tokens=1025, r=[1]))


def test_mismatched_shapes_are_errors() -> None:
    feeds = drawn("tome", r=[1])
    feeds["size"] = feeds["size"][:, 1:]
    with pytest.raises(InvalidArgument, match=r"size is \(B, N"):
        session("tome", "float32", cuda=True).run(None, feeds)


@pytest.fixture
def cublas() -> Iterator[ctypes.CDLL]:
    fake = cublas_lt.load()
    if fake is None:
        pytest.skip("a real cuBLASLt is at hand")
    yield fake
    fake.tokenfold_host_refuse(0)


# One row; three shapes, of which two have equal numbers of rows; and no rows.
ROWS = ((1, 1), (2, 6), (3, 4), (2, 6), (1, 23), (0, 5), (1, 1))


@pytest.mark.usefixtures("cublas")
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("graph", ["linear", "gelu", "add"])
def test_linear_layers(graph: str, kind: str) -> None:
    rounding = {"float16": 2**-11, "bfloat16": 2**-8}[kind]
    for batch, tokens in ROWS:
        feeds = drawn(graph, batch=batch, tokens=tokens)
        if graph == "gelu":  # The kernel approximates GELU.
            check(graph, kind, feeds, atol=1e-3, rtol=rounding)
        else:
            check(graph, kind, feeds)


@pytest.mark.usefixtures("cublas")
def test_a_bias_at_a_new_address_is_used() -> None:
    inputs = [value(name, HALF, *SHAPES[name]) for name in ("x", "w", "bias")]
    outputs = [helper.make_tensor_value_info("y", HALF, None)]
    graph = helper.make_graph(GRAPHS["linear"], "ops", inputs, outputs)
    opened_session = started(graph, {"Linear"}, cuda=True)
    feeds = {name: array.astype(np.float16) for name, array in drawn("linear").items()}
    first = opened_session.run(None, feeds)[0]
    # At another address, because the first bias is still alive.
    moved = feeds | {"bias": feeds["bias"] + np.float16(2)}
    np.testing.assert_allclose(opened_session.run(None, moved)[0], first + np.float16(2), atol=8e-3)


@pytest.mark.usefixtures("cublas")
def test_the_residual_must_have_the_shape_of_the_product() -> None:
    for batch, tokens in ((2, 1), (1, 6), (2, 5)):
        feeds = drawn("add", batch=2, tokens=6)
        feeds["residual"] = feeds["residual"][:batch, :tokens]
        with pytest.raises(InvalidArgument, match="residual has the shape of the product"):
            session("add", "float16", cuda=True).run(None, feeds)


@pytest.mark.parametrize("graph", ["linear", "gelu", "add"])
def test_sizes_that_cublas_rejects_are_errors_each_time(graph: str, cublas: ctypes.CDLL) -> None:
    opened_session = session.__wrapped__(graph, "float16", cuda=True)
    before = cublas.tokenfold_host_living()
    cublas.tokenfold_host_refuse(2 * 6)
    feeds = drawn(graph, batch=2, tokens=6)
    for _ in range(2):
        with pytest.raises(Fail, match="knows no way to multiply these sizes"):
            opened_session.run(None, feeds)
        assert cublas.tokenfold_host_living() == before
    opened_session.run(None, drawn(graph, batch=2, tokens=5))
    cublas.tokenfold_host_refuse(0)
    opened_session.run(None, feeds)
    del opened_session
    assert cublas.tokenfold_host_living() == before
