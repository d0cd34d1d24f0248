"""From a checkpoint to a bundle: one ONNX graph for every level and runtime, verified and measured."""
