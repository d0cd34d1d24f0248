"""Checks of engines that TensorRT for RTX builds without a GPU, with plugins built for the CPU."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import onnx
import pytest

from tests.native.cuda_host import tensorrt as cuda_host_plugins
from tests.native.cuda_host.library import compiler
from tests.runtime.tensorrt.bundles import bundle as tiny_bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import GRAPHS, Precision
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.libraries import DOMAIN
from tokenfold.runtime.tensorrt import network, plugins, target, variant
from tokenfold.runtime.tensorrt.builder import Builder, Layer
from tokenfold.runtime.tensorrt.plugins import PluginLibrary
from tokenfold.runtime.tensorrt.spec import EngineSpec, engine_specs
from tokenfold.runtime.tensorrt.variant import TensorRTVariant

RTX = "tensorrt-rtx"
GPU = "sm_89"

needs_rtx = pytest.mark.skipif(
    RTX not in variant.installed() or compiler() is None,
    reason=f"{RTX} is not installed, or there is no C++ compiler for the plugins",
)


@cache
def rtx() -> TensorRTVariant:
    """Return TensorRT for RTX."""
    return variant.load(RTX)


@cache
def plugin_library() -> PluginLibrary:
    """Return the plugins, registered with TensorRT for RTX."""
    library = plugins.register(rtx(), cuda_host_plugins.build())
    assert library is not None
    return library


@cache
def builder(with_plugins: bool = True) -> Builder:
    """Return a builder for GPUs that are not present."""
    return Builder(rtx(), plugin_library() if with_plugins else None)


def engine_spec(
    bundle: Bundle, graph: str, *, with_plugins: bool = True, gpu: str = GPU, bfloat16: bool = False
) -> EngineSpec:
    """Return the specification of a graph's engine for all plans."""
    build_target = target.aot_target(rtx(), plugin_library() if with_plugins else None, gpu)
    specs = engine_specs(bundle, build_target, precision="bf16" if bfloat16 else None)
    (spec,) = (spec for spec in specs if spec.graph == graph)
    return spec


def with_one_profile(spec: EngineSpec) -> EngineSpec:
    """Keep one range of batch sizes, which saves time: profiles are built independently."""
    return spec.model_copy(update={"profiles": spec.profiles[1:2]})


def graphs(kind: str, precision: Precision = "fp16") -> list[tuple[Bundle, str]]:
    """Return the graphs of a kind of bundle, each with the bundle."""
    bundle = tiny_bundle(kind, precision)
    return [(bundle, graph) for graph in GRAPHS[bundle.manifest.kind]]


def count_ops(bundle: Bundle, graph: str) -> Counter[str]:
    """Count our ops in a graph."""
    nodes = onnx.load(bundle.folder / graph).graph.node
    return Counter(node.op_type for node in nodes if node.domain == DOMAIN)


def count_plugins(layers: list[Layer]) -> Counter[str]:
    """Count our plugins in a network, by op."""
    return Counter(layer.name.rpartition("_")[0] for layer in layers if layer.plugin)


def check_engines(kind: str, precision: Precision, *, all_profiles: bool) -> None:
    """Check that our ops become plugins, and that engines can be built.

    Args:
        all_profiles: whether to build for all ranges of batch sizes.
    """
    for bundle, graph in graphs(kind, precision):
        spec = engine_spec(bundle, graph)
        plugin_counts = count_plugins(builder().layers(bundle.folder / graph, spec))
        ops = count_ops(bundle, graph)
        assert plugin_counts == Counter({op: ops[op] for op in ops if op in network.PLUGINS})
        matchers = sum(plugin_counts[op] for op in plugin_counts if op.startswith("Match"))
        assert matchers == plugin_counts["Reduce"] == ops["Reduce"]
        if graph in ("model.onnx", "image.onnx"):
            assert ops["Reduce"] == bundle.manifest.workload.depth
        engine = builder().build(
            bundle.folder / graph, spec if all_profiles else with_one_profile(spec)
        )
        assert len(engine) > 10_000
        names_matcher = any(name in engine for name in (b"MatchTo", b"MatchPiTo", b"MatchPu"))
        assert names_matcher == bool(matchers)


def check_bodies(kind: str, precision: Precision) -> None:
    """Check that the ops' portable bodies are built when there are no plugins."""
    for bundle, graph in graphs(kind, precision):
        spec = engine_spec(bundle, graph, with_plugins=False)
        assert not count_plugins(builder(False).layers(bundle.folder / graph, spec))
        assert len(builder(False).build(bundle.folder / graph, with_one_profile(spec))) > 10_000


def check_bfloat16(kind: str) -> None:
    """Check that a float16 bundle can be built in bfloat16, with the same plugins."""
    for bundle, graph in graphs(kind):
        spec = engine_spec(bundle, graph, bfloat16=True)
        plugin_counts = count_plugins(builder().layers(bundle.folder / graph, spec))
        assert plugin_counts["Reduce"] == count_ops(bundle, graph)["Reduce"]
        assert len(builder().build(bundle.folder / graph, with_one_profile(spec))) > 10_000


def check_gpu(kind: str, gpu: str) -> None:
    """Check that engines are built for the requested architecture, which they name."""
    for bundle, graph in graphs(kind):
        spec = with_one_profile(engine_spec(bundle, graph, gpu=gpu))
        engine = builder().build(bundle.folder / graph, spec)
        match = re.search(rb"accelerators=\{(\w+) \}", engine)
        assert match is not None
        assert match[1].decode() == gpu.replace("_", "")


def reduced_widths(layers: list[Layer]) -> list[int]:
    """Return the number of tokens after each reduction, in order."""
    return [
        layer.shapes[0][1] for layer in layers if layer.plugin and layer.name.startswith("Reduce_")
    ]


def static_spec(bundle: Bundle, graph: str, plan: Plan) -> EngineSpec:
    """Return the specification of a graph's engine for one plan."""
    return engine_spec(bundle, graph).model_copy(update={"plan": plan})


def check_plan(kind: str, plan: Plan) -> None:
    """Check the shapes that TensorRT infers for each of our plugins when the plan is fixed.

    Args:
        kind: a kind of bundle whose first graph takes images and a plan.
    """
    bundle, graph = graphs(kind)[0]
    layers = builder().layers(bundle.folder / graph, static_spec(bundle, graph, plan))
    widths = bundle.manifest.workload.widths(plan)
    assert reduced_widths(layers) == widths[1:]
    # Slots have one entry per input token; the size of the other output encodes the count.
    matchers = [layer for layer in layers if layer.plugin and layer.name.startswith("Match")]
    for layer, width, r in zip(matchers, widths, plan, strict=False):
        slots, count = layer.shapes
        assert slots == (-1, width)
        assert count == (min(r, width) + 1,)
