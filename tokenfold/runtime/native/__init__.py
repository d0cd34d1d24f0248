"""Compiled libraries: custom ops for ONNX Runtime, plugins for TensorRT."""

DOMAIN = "tokenfold"
"""The ONNX domain of the ops."""
