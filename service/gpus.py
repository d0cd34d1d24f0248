"""What GPUs are doing, for Prometheus: memory and utilisation, over NVIDIA's management library.

InferenceBody at each scrape. Where the library or a driver is missing there are no such metrics.
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

# Of the package nvidia-ml-py.
_MODULE = "pynvml"


class Gpu(NamedTuple):
    """One GPU now.

    Attributes:
        number: as the management library counts, whatever CUDA_VISIBLE_DEVICES says.
        used, total: bytes of memory, of all processes.
        utilisation: share of the last moments in which anything ran, 0 to 1; None where that is
            not measured, as of a GPU that is divided (MIG).
    """

    number: int
    used: int
    total: int
    utilisation: float | None


class Gpus:
    """All GPUs of the machine. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._library: Any = None
        self._absent = False

    def read(self) -> list[Gpu]:
        """What they are doing now; nothing where that cannot be learnt."""
        with self._lock:
            if self._absent:
                return []
            try:
                if self._library is None:
                    library = importlib.import_module(_MODULE)
                    library.nvmlInit()
                    self._library = library
            except Exception as error:
                # Neither a package nor a driver appears while the process lives.
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
    """Their metrics."""

    def __init__(self, gpus: Gpus | None = None) -> None:
        self._gpus = gpus or Gpus()

    def describe(self) -> list[GaugeMetricFamily]:
        """None: else registering would ask the GPUs."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        gpus = self._gpus.read()
        if not gpus:
            return
        memory = GaugeMetricFamily(
            "tokenfold_gpu_memory_bytes",
            "Memory of a GPU, of all processes together.",
            labels=["gpu", "kind"],
        )
        utilisation = GaugeMetricFamily(
            "tokenfold_gpu_utilization_ratio",
            "Share of the last moments in which a GPU ran anything.",
            labels=["gpu"],
        )
        for gpu in gpus:
            memory.add_metric([str(gpu.number), "used"], gpu.used)
            memory.add_metric([str(gpu.number), "total"], gpu.total)
            if gpu.utilisation is not None:
                utilisation.add_metric([str(gpu.number)], gpu.utilisation)
        yield memory
        yield utilisation
