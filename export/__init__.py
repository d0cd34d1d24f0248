"""From a checkpoint to a bundle: one ONNX graph for every level, verified and measured."""
