"""Run graphs with ONNX Runtime on an NVIDIA GPU: memory, streams, CUDA graphs. Never uses torch."""
