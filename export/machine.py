"""On what something was measured, in a line each."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime

from export.plugins.onnxruntime import library


def machine() -> str:
    """Processor and cores, e.g. `AMD EPYC 9354, 2 cores`."""
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores"


def software(*, native: bool) -> str:
    """ONNX Runtime's version, and which ops ran."""
    ops = f"native ops ({library.kernels()})" if native else "portable ops"
    return f"onnxruntime {onnxruntime.__version__}, {ops}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
