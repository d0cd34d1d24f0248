"""int8: weights of linear layers per channel, activations quantised as they come."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from tokenfold.export import onnx_file


def replace(graph: Path) -> None:
    """Quantise a graph where it stands, with the file of its weights if there is one."""
    with TemporaryDirectory(dir=graph.parent) as wide:
        for file in graph.parent.glob(f"{graph.name}*"):
            file.rename(Path(wide) / file.name)
        quantise(Path(wide) / graph.name, graph)


def quantise(source: Path, target: Path) -> None:
    """Write the graph at `source` with the constants of its matrix products as int8.

    Attention and the reduction ops stay in float32.
    """
    model = onnx.load(source)
    # The quantiser takes types from value_info, which knows nothing of our ops' outputs.
    del model.graph.value_info[:]
    # Its advice is to pre-process, which would inline the ops' bodies.
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with TemporaryDirectory(dir=target.parent) as folder:
            bare = Path(folder) / "model.onnx"
            onnx_file.save(model, bare)
            quantize_dynamic(
                bare,
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
