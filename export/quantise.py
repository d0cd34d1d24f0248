"""int8 quantisation: weights of linear layers per channel, activations at run time."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from tokenfold.export.graphs import onnx_file


def replace(graph: Path) -> None:
    """Quantise a graph in place, with its weights file if it has one."""
    with TemporaryDirectory(dir=graph.parent) as unquantised:
        for file in graph.parent.glob(f"{graph.name}*"):
            file.rename(Path(unquantised) / file.name)
        quantise(Path(unquantised) / graph.name, graph)


def quantise(source: Path, target: Path) -> None:
    """Write the graph at `source` to `target`, with the weights of matrix products as int8.

    Attention and the reduction ops stay in float32.
    """
    model = onnx.load(source)
    # The quantiser reads types from value_info, which lacks the outputs of our ops.
    del model.graph.value_info[:]
    # The quantiser logs the advice to pre-process, which would inline the function bodies.
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with TemporaryDirectory(dir=target.parent) as folder:
            stripped = Path(folder) / "model.onnx"
            onnx_file.save(model, stripped)
            quantize_dynamic(
                stripped,
                target,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=onnx_file.weights_size(model) / 4
                > onnx_file.EXTERNAL_ABOVE,
                extra_options={
                    "DefaultTensorType": onnx.TensorProto.FLOAT,
                    "MatMulConstBOnly": True,
                },
            )
    finally:
        logger.setLevel(level)
