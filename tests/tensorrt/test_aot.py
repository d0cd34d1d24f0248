"""Engines of every kind of bundle, built by TensorRT for RTX for GPUs that are not here.

What it cannot show without a GPU: that they run. tests/gpu does.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from unittest.mock import ANY

import onnx
import pytest

from export.bundle import Bundle
from export.manifest import GRAPHS, Precision
from export.plugins.functions import DOMAIN
from export.tensorrt import network
from export.tensorrt.builder import Layer
from export.tensorrt.engines import Origin
from export.tensorrt.flavour import TensorRtError
from models.reduction.pair_workload import PairWorkload
from models.reduction.workload import Plan
from tests.cuda_host import tensorrt as built
from tests.tensorrt import ahead
from tests.tensorrt.ahead import GPU, builder, needs_rtx, origin
from tests.tensorrt.bundles import KINDS, LEVELS, bundle

pytestmark = [needs_rtx, pytest.mark.timeout(600)]

BATCH = 2
EVERY: list[tuple[str, Precision]] = [
    *((kind, "fp16") for kind in KINDS),
    ("vit", "fp32"),
    ("vilt", "fp32"),
]


def graphs(kind: str, precision: Precision) -> list[tuple[Bundle, str]]:
    made = bundle(kind, precision)
    return [(made, graph) for graph in GRAPHS[made.manifest.kind]]


def ops(made: Bundle, graph: str) -> Counter[str]:
    """Our ops in a graph."""
    nodes = onnx.load(made.folder / graph).graph.node
    return Counter(node.op_type for node in nodes if node.domain == DOMAIN)


def plugins(layers: list[Layer]) -> Counter[str]:
    """Plugins in a network, by op."""
    return Counter(layer.name.rpartition("_")[0] for layer in layers if layer.plugin)


def test_it_builds_for_other_gpus_than_those_that_are_not_rtx() -> None:
    assert {"sm_75", "sm_80", "sm_86", "sm_89", "sm_120"} <= set(ahead.rtx().ahead)
    with pytest.raises(TensorRtError, match="does not build for sm90; it does for sm_75"):
        origin(bundle("vit", "fp16"), "model.onnx", gpu="sm90")


@pytest.mark.parametrize(("kind", "precision"), EVERY)
def test_our_ops_are_plugins_and_engines_are_built(kind: str, precision: Precision) -> None:
    for made, graph in graphs(kind, precision):
        wanted = origin(made, graph)
        found = plugins(builder().layers(made.folder / graph, wanted))
        own = ops(made, graph)
        assert found == Counter({op: own[op] for op in own if op in network.PLUGINS})
        reducing = own["Reduce"]
        matchers = sum(found[op] for op in found if op.startswith("Match"))
        assert matchers == found["Reduce"] == reducing
        if graph in ("model.onnx", "image.onnx"):
            assert reducing == made.manifest.workload.depth
        engine = builder().build(made.folder / graph, wanted)
        assert len(engine) > 10_000
        assert (b"MatchTo" in engine or b"MatchPiTo" in engine or b"MatchPu" in engine) == bool(
            matchers
        )


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("vit", "fp16"), ("pitome", "fp16"), ("vilt", "fp32"), ("meter", "fp16"), ("clip", "fp16")],
)
def test_bodies_build_where_there_are_no_plugins(kind: str, precision: Precision) -> None:
    for made, graph in graphs(kind, precision):
        wanted = origin(made, graph, with_plugins=False)
        parsed = builder(False).layers(made.folder / graph, wanted)
        assert not plugins(parsed)
        # One of the profiles: what they have in common takes most of the time.
        usual = wanted.model_copy(update={"profiles": wanted.profiles[1:2]})
        assert len(builder(False).build(made.folder / graph, usual)) > 10_000


@pytest.mark.parametrize("gpu", ["sm_75", "sm_80", "sm_86", "sm_120"])
def test_engines_for_other_compute_capabilities(gpu: str) -> None:
    made = bundle("vit", "fp16")
    one = builder().build(made.folder / "model.onnx", origin(made, "model.onnx", gpu=gpu))
    other = builder().build(made.folder / "model.onnx", origin(made, "model.onnx", gpu=GPU))
    assert one != other


@pytest.mark.parametrize("kind", ["vit", "vilt", "meter", "clip"])
def test_bfloat16_of_a_float16_bundle(kind: str) -> None:
    for made, graph in graphs(kind, "fp16"):
        wanted = origin(made, graph, bfloat16=True)
        assert (
            plugins(builder().layers(made.folder / graph, wanted))["Reduce"]
            == (ops(made, graph)["Reduce"])
        )
        assert len(builder().build(made.folder / graph, wanted)) > 10_000


def reduced(layers: list[Layer]) -> list[int]:
    """Tokens that each reduction leaves, in order."""
    return [
        layer.shapes[0][1] for layer in layers if layer.plugin and layer.name.startswith("Reduce_")
    ]


def fixed(made: Bundle, graph: str, plan: Plan) -> Origin:
    return origin(made, graph).model_copy(update={"plan": plan})


@pytest.mark.parametrize("kind", ["vit", "pitome", "clip", "siglip"])
@pytest.mark.parametrize("plan", [(0, 0, 0), (2, 2, 2), (5, 0, 1), (8, 8, 8), (100, 100, 100)])
def test_shapes_follow_from_a_fixed_plan(kind: str, plan: Plan) -> None:
    """With the plan known TensorRT itself says how many tokens each of our plugins leaves."""
    made = bundle(kind, "fp16")
    graph = GRAPHS[made.manifest.kind][0]
    layers = builder().layers(made.folder / graph, fixed(made, graph, plan))
    widths = made.manifest.workload.widths(plan)
    assert reduced(layers) == widths[1:]
    # Slots are of the tokens before, and a count is told by the size of an output.
    matched = [layer for layer in layers if layer.plugin and layer.name.startswith("Match")]
    for layer, before, r in zip(matched, widths, plan, strict=False):
        slots, count = layer.shapes
        assert slots == (-1, before)
        assert count == (min(r, before) + 1,)


def sized(made: Bundle, folder: Path, *, text: int, image: int) -> Path:
    """The graph in which image and text meet, for inputs of these sizes alone."""
    model = onnx.load(made.folder / "joint.onnx")
    sizes = {"batch": BATCH, "text": text, "image": image}
    for given in model.graph.input:
        for dim in given.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    path = folder / "joint.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("text", [12, 5])
@pytest.mark.parametrize("level", list(LEVELS))
@pytest.mark.parametrize("kind", ["vilt", "meter"])
def test_shapes_follow_from_pumers_counts(tmp_path: Path, kind: str, level: str, text: int) -> None:
    made = bundle(kind, "fp16")
    workload = made.manifest.workload
    assert isinstance(workload, PairWorkload)
    plan = made.manifest.plan(made.manifest.levels[level], text=text, image=workload.image)
    path = sized(made, tmp_path, text=text, image=workload.image)
    layers = builder().layers(path, fixed(made, "joint.onnx", plan))
    found = {
        kind: [layer.shapes for layer in layers if layer.name.startswith(kind)]
        for kind in ("MatchPuMer_", "MatchToMe_", "Reduce_", "Importance_")
    }
    streams = workload.sized(text=text).streams(plan)
    at = [layer for layer in range(workload.depth) if layer in workload.layers]
    left = [streams[layer + 1] for layer in at]
    # METER's text and image are two streams, ViLT's are one.
    apart = kind == "meter"
    widths = [width for both in left for width in (both if apart else (sum(both),))]
    assert found["Reduce_"] == [((BATCH, n, 48), (BATCH, n), ANY) for n in widths]
    # What goes is told by the sizes of outputs: text tokens, and counts to prune and merge.
    asked = [(streams[layer][0], *plan[3 * layer : 3 * layer + 3]) for layer in at]
    pumer = [tuple(size - 1 for (size,) in told) for _, *told in found["MatchPuMer_"]]
    assert pumer == [(0, *counts[1:3], 0) if apart else counts for counts in asked]
    merged = [told - 1 for _, (told,) in found["MatchToMe_"]]
    assert merged == [counts[3] for counts in asked if apart]
    assert [told - 1 for _, (told,) in found["Importance_"]] == [counts[0] for counts in asked]


def test_a_graph_that_cannot_be_parsed_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = bundle("vit", "fp16")
    model = onnx.load(made.folder / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Reduce")
    node.attribute.remove(next(one for one in node.attribute if one.name == "protected"))
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(TensorRtError, match=r"could not be parsed.*protected"):
        builder().layers(path, origin(made, "model.onnx"))
    # And what is built after it is none the worse.
    assert reduced(
        builder().layers(made.folder / "model.onnx", fixed(made, "model.onnx", (1, 1, 1)))
    )


def test_what_is_no_library_of_plugins_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    from export.tensorrt.plugins import registered

    path = tmp_path_factory.mktemp("plugins") / "library.so"
    path.write_bytes(b"nothing")
    with pytest.raises(TensorRtError, match="is no library of plugins"):
        registered(ahead.rtx(), path)
    assert registered(ahead.rtx(), built.build()) is ahead.registered()
