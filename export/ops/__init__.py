"""Ops of the `tokenfold` ONNX domain as function bodies."""
