"""The ops for TensorRT: a plugin library, and where it is."""
