"""The reduction ops of the `tokenfold` ONNX domain, for each runtime."""
