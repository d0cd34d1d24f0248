"""int8: weights of linear layers per channel, activations quantised as they come."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic


def quantise(source: Path, target: Path) -> None:
    """Write the graph at `source` with the constants of its matrix products as int8.

    Attention and the reduction ops stay in float32.
    """
    model = onnx.load(source)
    # The quantiser takes types from value_info, which knows nothing of our ops' outputs.
    del model.graph.value_info[:]
    bare = target.with_suffix(".bare")
    onnx.save(model, bare)
    # It advises pre-processing, which would inline the ops' bodies.
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            bare,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)
        bare.unlink(missing_ok=True)
