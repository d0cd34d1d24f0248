"""Sessions that run a bundle's graphs: ONNX Runtime on a CPU or a GPU, or TensorRT engines."""

import os

# ONNX Runtime reads this when it is imported; without it, it writes telemetry to the user's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
