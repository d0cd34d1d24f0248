"""Memory and utilisation of GPUs for Prometheus, from NVIDIA's management library (NVML).

They are read at each scrape. Without the library or a driver there are no such metrics.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

# Module of the package nvidia-ml-py.
_MODULE = "pynvml"


class Gpu(NamedTuple):
    """The state of a GPU.

    Attributes:
        number: index in NVML, which ignores CUDA_VISIBLE_DEVICES.
        used: bytes of memory used by all processes.
        total: bytes of memory.
        utilisation: fraction of the last sampling period in which a kernel ran, 0 to 1; None if
            it is not measured, as for a GPU that is partitioned (MIG).
    """

    number: int
    used: int
    total: int
    utilisation: float | None


class Gpus:
    """The GPUs of the machine. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._library: Any = None
        self._absent = False

    def read(self) -> list[Gpu]:
        """Return the state of each GPU; an empty list if it cannot be read."""
        with self._lock:
            if self._absent:
                return []
            try:
                if self._library is None:
                    library = importlib.import_module(_MODULE)
                    library.nvmlInit()
                    self._library = library
            except Exception as error:
                # Neither a package nor a driver is installed while the process runs.
                self._absent = True
                logger.debug("no metrics of GPUs: %s", error)
                return []
            try:
                return [self._gpu(at) for at in range(self._library.nvmlDeviceGetCount())]
            except Exception as error:
                logger.debug("GPUs could not be read: %s", error)
                return []

    def _gpu(self, number: int) -> Gpu:
        handle = self._library.nvmlDeviceGetHandleByIndex(number)
        memory = self._library.nvmlDeviceGetMemoryInfo(handle)
        utilisation = None
        with contextlib.suppress(Exception):
            utilisation = self._library.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0
        return Gpu(number, int(memory.used), int(memory.total), utilisation)


class GpuCollector(Collector):
    """Collector of the GPU metrics."""

    def __init__(self, gpus: Gpus | None = None) -> None:
        self._gpus = gpus or Gpus()

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing, or registering would read the GPUs."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        gpus = self._gpus.read()
        if not gpus:
            return
        memory = GaugeMetricFamily(
            "tokenfold_gpu_memory_bytes",
            "Memory of a GPU, of all processes.",
            labels=["gpu", "kind"],
        )
        utilisation = GaugeMetricFamily(
            "tokenfold_gpu_utilization_ratio",
            "Fraction of the last sampling period in which a GPU ran a kernel.",
            labels=["gpu"],
        )
        for gpu in gpus:
            memory.add_metric([str(gpu.number), "used"], gpu.used)
            memory.add_metric([str(gpu.number), "total"], gpu.total)
            if gpu.utilisation is not None:
                utilisation.add_metric([str(gpu.number)], gpu.utilisation)
        yield memory
        yield utilisation
