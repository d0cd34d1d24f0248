"""Facts about this machine: usable cores, the processor, and the runtime's version."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from tokenfold.runtime import libraries

CGROUPS = Path("/sys/fs/cgroup")
"""The control groups of the container: version 2, or version 1 below `cpu`."""


def cores() -> int:
    """Return the cores this process may use: its affinity, within its container quota."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    return allowed if quota is None else min(allowed, max(1, round(quota)))


def _cpu_quota() -> float | None:
    """Return the container's quota in cores; None without one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CGROUPS / "cpu.max").read_text().split()
        return int(quota) / int(period)  # "max" is no number: there is no quota
    with contextlib.suppress(OSError, ValueError):
        limit = int((CGROUPS / "cpu" / "cpu.cfs_quota_us").read_text())
        period = (CGROUPS / "cpu" / "cpu.cfs_period_us").read_text()
        return limit / int(period) if limit > 0 else None
    return None


def machine() -> str:
    """Return the processor and its cores, e.g. `AMD EPYC 9354, 2 cores`."""
    return f"{_processor()}, {cores()} cores"


def software(*, native: bool) -> str:
    """Return ONNX Runtime's version and the kind of ops that ran."""
    import onnxruntime  # imported here: the service calls `cores` before it needs a runtime

    ops = f"native ops ({libraries.native_ops().kernels})" if native else "portable ops"
    return f"onnxruntime {onnxruntime.__version__}, {ops}"


def saturates() -> bool:
    """Whether sums of 8-bit products may saturate on this processor: x86 without VNNI."""
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
