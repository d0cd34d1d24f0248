"""ONNX graphs of the networks, traced with PyTorch."""
