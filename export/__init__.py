"""From a checkpoint to a bundle: one ONNX graph for every level, verified and measured."""

import os

# Read when ONNX Runtime is imported; without it, it keeps telemetry below the user's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
