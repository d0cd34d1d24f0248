"""The ops for ONNX Runtime: a C++ custom-op library, where one is built."""
