"""Tests that no graph needs a copy between host and GPU during a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto

from tests import tiny
from tests.native import placement
from tests.native.cuda_host import registered
from tests.native.cuda_host.library import TOP, compiler
from tokenfold.bundle.pair_workload import PairMethod
from tokenfold.export.graphs.classifier import ClassifierGraph
from tokenfold.export.graphs.dual import ImageGraph, TextGraph
from tokenfold.export.graphs.pair import JointGraph, VisionGraph
from tokenfold.export.ops.functions import functions
from tokenfold.models.reduction.pitome import PiToMe
from tokenfold.models.reduction.tome import ToMe
from tokenfold.runtime import libraries
from tokenfold.runtime.libraries import DOMAIN

GRAPHS: dict[str, Callable[[Path], None]] = {}
"""Functions that each write one graph of a tiny network."""


def written(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def keep(write: Callable[[Path], None]) -> Callable[[Path], None]:
        GRAPHS[name] = write
        return write

    return keep


@written("tome")
def tome(path: Path) -> None:
    checkpoint = tiny.checkpoint(distill_token=True)
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, [ToMe(True, True)] * 3, True).write(
        path
    )


@written("half")
def half(path: Path) -> None:
    checkpoint = tiny.checkpoint()
    ClassifierGraph(
        checkpoint.model, checkpoint.preprocess, [ToMe()] * 3, True, torch.float16
    ).write(path)


@written("pitome")
def pitome(path: Path) -> None:
    checkpoint = tiny.checkpoint()
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, [PiToMe(0.5, 1)] * 3, False).write(
        path
    )


@written("unreduced")
def unreduced(path: Path) -> None:
    checkpoint = tiny.checkpoint()
    ClassifierGraph(checkpoint.model, checkpoint.preprocess, None, True).write(path)


@written("image")
def image(path: Path) -> None:
    checkpoint = tiny.dual_checkpoint()
    depth = checkpoint.model.config.image.depth
    ImageGraph(checkpoint.model, checkpoint.preprocess, [ToMe()] * depth, True).write(path)


@written("text")
def text(path: Path) -> None:
    TextGraph(tiny.dual_checkpoint().model).write(path)


@written("sigmoid-text")
def sigmoid_text(path: Path) -> None:
    TextGraph(tiny.dual_checkpoint(siglip=True).model).write(path)


@written("vilt-vision")
def vilt_vision(path: Path) -> None:
    checkpoint = tiny.pair_checkpoint()
    VisionGraph(checkpoint.model, checkpoint.preprocess).write(path)


@written("meter-vision")
def meter_vision(path: Path) -> None:
    checkpoint = tiny.meter_checkpoint()
    VisionGraph(checkpoint.model, checkpoint.preprocess).write(path)


def joint(path: Path, method: PairMethod, *, meter: bool) -> None:
    checkpoint = tiny.meter_checkpoint() if meter else tiny.pair_checkpoint()
    JointGraph(checkpoint.model, checkpoint.model.config.workload(method), weighted=True).write(
        path
    )


@written("vilt-pumer")
def vilt_pumer(path: Path) -> None:
    joint(path, "pumer", meter=False)


@written("vilt-tome")
def vilt_tome(path: Path) -> None:
    joint(path, "tome", meter=False)


@written("meter-pumer")
def meter_pumer(path: Path) -> None:
    joint(path, "pumer", meter=True)


def optimised(path: Path, level: ort.GraphOptimizationLevel) -> ModelProto:
    """Return a graph as ONNX Runtime simplifies it, with our ops as nodes."""
    out = path.with_name(f"optimised-{path.name}")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(out)
    # Register the CUDA ops' library, because the CPU library lacks some of them.
    options.register_custom_ops_library(str(registered.build()))
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(out)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_graph_needs_copies(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    GRAPHS[name](path)
    model = onnx.load(path)
    assert placement.copies(model) == []
    if compiler() is not None and libraries.find() is not None:
        # A session assigns devices after its basic optimisations.
        simplified = optimised(path, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
        assert placement.copies(simplified) == []
        constants = {weight.name for weight in simplified.graph.initializer}
        counts = {
            node.input[at]
            for node in simplified.graph.node
            if node.domain == DOMAIN
            for at in placement.HOST_INPUTS.get(placement.kind(node), ())
        }
        assert bool(counts) == any(method in name for method in ("tome", "pumer", "half", "image"))
        assert counts <= placement.on_host(simplified) | constants


def parsed(body: str) -> ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20, "{DOMAIN}": 1]>
        graph (float[batch, 9, 4] keys, float[batch, 9] size, int64[1] plan)
            => (int64[batch, 9] out)
        {{ {body} }}"""
    )


MATCH = f"out = {DOMAIN}.MatchToMe <heads = 1, protected = 0> (keys, size, r)"


def test_a_copied_plan_is_detected() -> None:
    bare = parsed(f"one = Constant <value_ints = [1]> () r = Add(plan, one) {MATCH}")
    assert placement.copies(bare) == [f"r for {DOMAIN}::MatchToMe "]
    held = parsed(f"length = Shape <start = 0, end = 1> (keys) r = Add(plan, length) {MATCH}")
    assert placement.copies(held) == []
    assert placement.on_host(held) == {"length", "r"}


def test_nodes_with_gpu_inputs_stay_on_the_gpu() -> None:
    model = parsed(
        f"""length = Shape <start = 0, end = 1> (keys)
        wide = Cast <to = 7> (size)
        flat = Reshape(wide, minus)
        r = Add(flat, length)
        {MATCH}"""
    )
    assert placement.on_host(model) == {"length"}
    assert f"r for {DOMAIN}::MatchToMe " in placement.copies(model)
    assert "length for Add " in placement.copies(model)


def test_an_input_used_on_both_devices_is_copied() -> None:
    model = parsed(
        f"""length = Shape <start = 0, end = 1> (keys)
        r = Add(plan, length)
        wide = Cast <to = 1> (plan)
        {MATCH}"""
    )
    assert placement.copies(model) == ["plan for Cast "]


def test_host_inputs_match_the_ops_sources() -> None:
    folder = TOP / "native" / "onnxruntime"
    source = "".join(path.read_text() for path in sorted(folder.glob("cuda_*.cc")))
    declared = re.findall(r'"(\w+)", \{x,[^;]*?cuda\((?:\{([\d, ]+)\})?\)', source)
    assert {kind for kind, _ in declared} == set(functions())
    for kind, counts in declared:
        expected = {int(at) for at in counts.split(",") if at}
        assert placement.HOST_INPUTS.get(f"{DOMAIN}::{kind}", set()) == expected
