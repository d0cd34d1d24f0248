"""ONNX files: tracing a module, and saving it with the function bodies of its ops."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from tokenfold.export.graphs import linear
from tokenfold.export.ops.functions import OPSET, functions
from tokenfold.runtime.libraries import DOMAIN

EXTERNAL_ABOVE = 1_500_000_000
"""Weights of at least this many bytes are stored in a second file."""


def write(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Sequence[dict[int, Any] | None],
) -> None:
    """Trace a module and write its graph, with the function bodies of the ops in it.

    Args:
        inputs: example inputs; the sizes of dynamic dimensions should differ and be above 1.
        dynamic_shapes: per input, its dynamic dimensions (`torch.export.Dim`).
    """
    # The exporter warns about its own deprecations and about missing torchvision.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs),
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=tuple(dynamic_shapes),
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    linear.fuse(model)
    op_types = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    del model.functions[:]
    model.functions.extend(body for kind, body in functions().items() if kind in op_types)
    save(model, path)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; large weights go to a second file, because a protobuf is limited to 2 GB."""
    if weights_size(model) < EXTERNAL_ABOVE:
        onnx.save(model, path)
    else:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location=f"{path.name}.data",
            size_threshold=1024,
        )


def weights_size(model: onnx.ModelProto) -> int:
    """Return the size of a graph's constants, bytes."""
    return sum(
        math.prod(weight.dims) * onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize
        for weight in model.graph.initializer
    )
