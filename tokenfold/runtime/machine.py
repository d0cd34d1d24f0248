"""On what something was measured, in a line each."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime

from tokenfold.runtime.native import onnxruntime as library


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> str:
    """Processor and cores, e.g. `AMD EPYC 9354, 2 cores`."""
    return f"{_processor()}, {cores()} cores"


def software(*, native: bool) -> str:
    """ONNX Runtime's version, and which ops ran."""
    ops = f"native ops ({library.kernels()})" if native else "portable ops"
    return f"onnxruntime {onnxruntime.__version__}, {ops}"


def saturates() -> bool:
    """Whether sums of products of 8-bit numbers may saturate here: x86 without VNNI."""
    flags = _cpuinfo("flags").split()
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)


def _processor() -> str:
    return _cpuinfo("model name") or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
