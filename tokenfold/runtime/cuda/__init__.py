"""ONNX Runtime on an NVIDIA GPU: memory, streams, captured graphs. No torch in here."""
