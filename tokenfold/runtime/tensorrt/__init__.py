"""Build TensorRT engines of a bundle, and run them."""
