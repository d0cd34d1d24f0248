"""Of the GPU that a bench ran on: its name, driver, and what it ran with."""

from __future__ import annotations

import importlib
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import onnxruntime

from tokenfold.bench.gpu_report import GpuMachine
from tokenfold.runtime.cuda import device
from tokenfold.runtime.machine import machine

UNKNOWN = "unknown"


def gpu_machine() -> GpuMachine:
    """The first GPU that this process sees.

    Raises:
        CudaError: there is none.
    """
    driver, cuda = _driver()
    versions = {"onnxruntime": onnxruntime.__version__}
    with suppress(PackageNotFoundError):
        versions["cuda-bindings"] = version("cuda-bindings")
    return GpuMachine(
        gpu=device.name(),
        driver=driver,
        cuda=cuda,
        processor=machine(),
        versions=versions,
        date=date.today().isoformat(),
    )


def _driver() -> tuple[str, str]:
    """The driver's version, and the newest CUDA that it knows."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return UNKNOWN, UNKNOWN
    try:
        nvml.nvmlInit()
        driver = nvml.nvmlSystemGetDriverVersion()
        number = nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError:
        return UNKNOWN, UNKNOWN
    name = driver.decode() if isinstance(driver, bytes) else str(driver)
    return name, f"{number // 1000}.{number % 1000 // 10}"
