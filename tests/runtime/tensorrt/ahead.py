"""TensorRT for RTX, which builds without a GPU, and plugins on this machine's processor."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import onnx
import pytest

from tests.native.cuda_host import tensorrt as built
from tests.native.cuda_host.library import compiler
from tests.runtime.tensorrt.bundles import bundle as exported
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import GRAPHS, Precision
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.libraries import DOMAIN
from tokenfold.runtime.tensorrt import flavour, network, plugins, target
from tokenfold.runtime.tensorrt.builder import Builder, Layer
from tokenfold.runtime.tensorrt.flavour import Flavour
from tokenfold.runtime.tensorrt.origin import Origin, origins
from tokenfold.runtime.tensorrt.plugins import Plugins

RTX = "tensorrt-rtx"
GPU = "sm_89"

needs_rtx = pytest.mark.skipif(
    RTX not in flavour.installed() or compiler() is None,
    reason=f"found no {RTX}, or no C++ compiler for the plugins",
)


@cache
def rtx() -> Flavour:
    """It, loaded."""
    return flavour.load(RTX)


@cache
def registered() -> Plugins:
    """The plugins, registered with it."""
    found = plugins.registered(rtx(), built.build())
    assert found is not None
    return found


@cache
def builder(with_plugins: bool = True) -> Builder:
    """What builds for GPUs that are not here."""
    return Builder(rtx(), registered() if with_plugins else None)


def origin(
    bundle: Bundle, graph: str, *, with_plugins: bool = True, gpu: str = GPU, bfloat16: bool = False
) -> Origin:
    """What an engine of a graph is to be built from, for all plans."""
    own = target.ahead(rtx(), registered() if with_plugins else None, gpu)
    every = origins(bundle, own, precision="bf16" if bfloat16 else None)
    (found,) = (one for one in every if one.graph == graph)
    return found


def usual(wanted: Origin) -> Origin:
    """For one range of batches, where more would show no more: each is built on its own."""
    return wanted.model_copy(update={"profiles": wanted.profiles[1:2]})


def graphs(kind: str, precision: Precision = "fp16") -> list[tuple[Bundle, str]]:
    """Those of a kind of bundle, each with its bundle."""
    made = exported(kind, precision)
    return [(made, graph) for graph in GRAPHS[made.manifest.kind]]


def own_ops(bundle: Bundle, graph: str) -> Counter[str]:
    """Our ops in a graph."""
    nodes = onnx.load(bundle.folder / graph).graph.node
    return Counter(node.op_type for node in nodes if node.domain == DOMAIN)


def own_plugins(layers: list[Layer]) -> Counter[str]:
    """Our plugins in a network, by op."""
    return Counter(layer.name.rpartition("_")[0] for layer in layers if layer.plugin)


def check_engines(kind: str, precision: Precision, *, every: bool) -> None:
    """Our ops are plugins, and engines are built.

    Args:
        every: whether for all ranges of batches.
    """
    for made, graph in graphs(kind, precision):
        wanted = origin(made, graph)
        found = own_plugins(builder().layers(made.folder / graph, wanted))
        ops = own_ops(made, graph)
        assert found == Counter({op: ops[op] for op in ops if op in network.PLUGINS})
        matchers = sum(found[op] for op in found if op.startswith("Match"))
        assert matchers == found["Reduce"] == ops["Reduce"]
        if graph in ("model.onnx", "image.onnx"):
            assert ops["Reduce"] == made.manifest.workload.depth
        engine = builder().build(made.folder / graph, wanted if every else usual(wanted))
        assert len(engine) > 10_000
        named = any(name in engine for name in (b"MatchTo", b"MatchPiTo", b"MatchPu"))
        assert named == bool(matchers)


def check_bodies(kind: str, precision: Precision) -> None:
    """Where there are no plugins, the ops' bodies are built."""
    for made, graph in graphs(kind, precision):
        wanted = origin(made, graph, with_plugins=False)
        assert not own_plugins(builder(False).layers(made.folder / graph, wanted))
        assert len(builder(False).build(made.folder / graph, usual(wanted))) > 10_000


def check_bfloat16(kind: str) -> None:
    """Of a float16 bundle, with the same plugins."""
    for made, graph in graphs(kind):
        wanted = origin(made, graph, bfloat16=True)
        found = own_plugins(builder().layers(made.folder / graph, wanted))
        assert found["Reduce"] == own_ops(made, graph)["Reduce"]
        assert len(builder().build(made.folder / graph, usual(wanted))) > 10_000


def check_gpu(kind: str, gpu: str) -> None:
    """Engines are for the GPU that was asked for, and say so."""
    for made, graph in graphs(kind):
        engine = builder().build(made.folder / graph, usual(origin(made, graph, gpu=gpu)))
        named = re.search(rb"accelerators=\{(\w+) \}", engine)
        assert named is not None
        assert named[1].decode() == gpu.replace("_", "")


def reduced(layers: list[Layer]) -> list[int]:
    """Tokens that each reduction leaves, in order."""
    return [
        layer.shapes[0][1] for layer in layers if layer.plugin and layer.name.startswith("Reduce_")
    ]


def fixed(bundle: Bundle, graph: str, plan: Plan) -> Origin:
    """What an engine of one plan is to be built from."""
    return origin(bundle, graph).model_copy(update={"plan": plan})


def check_plan(kind: str, plan: Plan) -> None:
    """With the plan known TensorRT itself says how many tokens each of our plugins leaves.

    Args:
        kind: one whose first graph takes images and a plan.
    """
    made, graph = graphs(kind)[0]
    layers = builder().layers(made.folder / graph, fixed(made, graph, plan))
    widths = made.manifest.workload.widths(plan)
    assert reduced(layers) == widths[1:]
    # Slots are of the tokens before, and a count is told by the size of an output.
    matched = [layer for layer in layers if layer.plugin and layer.name.startswith("Match")]
    for layer, before, r in zip(matched, widths, plan, strict=False):
        slots, count = layer.shapes
        assert slots == (-1, before)
        assert count == (min(r, before) + 1,)
