"""What ONNX Runtime's ops for CUDA hand to the kernels, run on this machine's processor."""

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
    "w": ("D", "E"),
    "bias": ("E",),
    "residual": ("B", "N", "E"),
}
ROUNDED = {"q", "k", "v", "qkv", "keys", "x", "w", "bias", "residual", "out", "y"}
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
    "linear": [node("Linear", ["x", "w", "bias"], ["y"])],
    "gelu": [node("LinearGelu", ["x", "w", "bias"], ["y"])],
    "add": [node("LinearAdd", ["x", "w", "bias", "residual"], ["y"])],
}


@cache
def session(graph: str, kind: str, *, cuda: bool) -> ort.InferenceSession:
    """Ops on tensors that were rounded to `kind`; the portable bodies compute in float32."""
    nodes, own = GRAPHS[graph], []
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
    made = helper.make_graph(
        own,
        "ops",
        [value(name, WHOLE if name in WHOLES else FLOAT, *SHAPES[name]) for name in inputs],
        [
            helper.make_tensor_value_info(name, WHOLE if name in WHOLES else FLOAT, None)
            for name in outputs
        ],
    )
    return started(made, {each.op_type for each in nodes}, cuda=cuda)


def started(graph: GraphProto, ops: set[str], *, cuda: bool) -> ort.InferenceSession:
    bodies = functions()
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[bodies[op] for op in ops],
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
    axes = {"B": batch, "N": tokens, "Q": 9, "D": 32, "E": 40, "W": 96, "P": 30}
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
            if each.name == "w":  # so that a product is no larger than what is added to it
                feeds[each.name] *= 32**-0.5
    return feeds


def check(
    graph: str, kind: str, feeds: Feeds, *, atol: float | None = None, rtol: float = 1e-7
) -> None:
    found = session(graph, kind, cuda=True).run(None, feeds)
    wanted = session(graph, kind, cuda=False).run(None, feeds)
    for own, other in zip(found, wanted, strict=True):
        if own.dtype == np.int64:
            np.testing.assert_array_equal(own, other)
        else:
            np.testing.assert_allclose(own, other, atol=atol or TOLERANCES[kind], rtol=rtol)


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


@pytest.fixture
def cublas() -> Iterator[ctypes.CDLL]:
    own = cublas_lt.load()
    if own is None:
        pytest.skip("a real cuBLASLt is at hand")
    yield own
    own.tokenfold_host_refuse(0)


# One row, as many rows again in the same and in another shape, and none.
ROWS = ((1, 1), (2, 6), (3, 4), (2, 6), (1, 23), (0, 5), (1, 1))


@pytest.mark.usefixtures("cublas")
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("graph", ["linear", "gelu", "add"])
def test_linear_layers(graph: str, kind: str) -> None:
    rounding = {"float16": 2**-11, "bfloat16": 2**-8}[kind]
    for batch, tokens in ROWS:
        feeds = drawn(graph, batch=batch, tokens=tokens)
        if graph == "gelu":  # by its approximation
            check(graph, kind, feeds, atol=1e-3, rtol=rounding)
        else:
            check(graph, kind, feeds)


@pytest.mark.usefixtures("cublas")
def test_a_bias_that_has_moved_is_followed() -> None:
    inputs = [value(name, HALF, *SHAPES[name]) for name in ("x", "w", "bias")]
    outputs = [helper.make_tensor_value_info("y", HALF, None)]
    graph = helper.make_graph(GRAPHS["linear"], "ops", inputs, outputs)
    own = started(graph, {"Linear"}, cuda=True)
    feeds = {name: array.astype(np.float16) for name, array in drawn("linear").items()}
    first = own.run(None, feeds)[0]
    moved = feeds | {"bias": feeds["bias"] + np.float16(2)}  # elsewhere, the first being held
    np.testing.assert_allclose(own.run(None, moved)[0], first + np.float16(2), atol=8e-3)


@pytest.mark.usefixtures("cublas")
def test_what_is_added_has_the_shape_of_the_product() -> None:
    for batch, tokens in ((2, 1), (1, 6), (2, 5)):
        feeds = drawn("add", batch=2, tokens=6)
        feeds["residual"] = feeds["residual"][:batch, :tokens]
        with pytest.raises(InvalidArgument, match="residual has the shape of the product"):
            session("add", "float16", cuda=True).run(None, feeds)


@pytest.mark.parametrize("graph", ["linear", "gelu", "add"])
def test_sizes_that_cublas_refuses_are_errors_each_time(graph: str, cublas: ctypes.CDLL) -> None:
    own = session.__wrapped__(graph, "float16", cuda=True)
    before = cublas.tokenfold_host_living()
    cublas.tokenfold_host_refuse(2 * 6)
    feeds = drawn(graph, batch=2, tokens=6)
    for _ in range(2):
        with pytest.raises(Fail, match="knows no way to multiply these sizes"):
            own.run(None, feeds)
        assert cublas.tokenfold_host_living() == before
    own.run(None, drawn(graph, batch=2, tokens=5))
    cublas.tokenfold_host_refuse(0)
    own.run(None, feeds)
    del own
    assert cublas.tokenfold_host_living() == before
