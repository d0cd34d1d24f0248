"""Tests of the GPU metrics, with a management library that works, fails or is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tokenfold.service.gpus import Gpu, GpuCollector, Gpus


class Library:
    """A stand-in for pynvml with two GPUs.

    Attributes:
        begun: number of initialisations.
        fails: name of the function that raises.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.fails = ""

    def _check(self, name: str) -> None:
        if self.fails == name:
            raise RuntimeError("NVML: driver not loaded")

    def nvmlInit(self) -> None:  # noqa: N802
        self.begun += 1
        self._check("init")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        return 10 + number

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        self._check("memory")
        return SimpleNamespace(used=handle * 1000, total=50_000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        self._check("utilisation")
        return SimpleNamespace(gpu=handle * 5)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    stub = Library()
    monkeypatch.setitem(sys.modules, "pynvml", stub)
    return stub


@pytest.mark.usefixtures("library")
def test_memory_and_utilisation_are_exported() -> None:
    assert Gpus().read() == [Gpu(0, 10_000, 50_000, 0.5), Gpu(1, 11_000, 50_000, 0.55)]
    registry = CollectorRegistry()
    registry.register(GpuCollector())
    memory = "tokenfold_gpu_memory_bytes"
    assert registry.get_sample_value(memory, {"gpu": "1", "kind": "used"}) == 11_000
    assert registry.get_sample_value(memory, {"gpu": "0", "kind": "total"}) == 50_000
    assert registry.get_sample_value("tokenfold_gpu_utilization_ratio", {"gpu": "1"}) == 0.55


def test_gpus_are_read_at_each_scrape(library: Library) -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector())
    assert library.begun == 0
    assert list(registry.collect())
    # After a failure the GPUs are read again.
    library.fails = "memory"
    assert not list(registry.collect())
    library.fails = ""
    assert list(registry.collect())
    assert library.begun == 1


def test_a_partitioned_gpu_exports_only_its_memory(library: Library) -> None:
    library.fails = "utilisation"
    registry = CollectorRegistry()
    registry.register(GpuCollector())
    memory = "tokenfold_gpu_memory_bytes"
    assert registry.get_sample_value(memory, {"gpu": "1", "kind": "used"}) == 11_000
    assert registry.get_sample_value("tokenfold_gpu_utilization_ratio", {"gpu": "1"}) is None


def test_without_a_driver_there_are_no_gpus(library: Library) -> None:
    library.fails = "init"
    gpus = Gpus()
    assert gpus.read() == []
    library.fails = ""
    assert gpus.read() == []
    assert library.begun == 1


def test_without_pynvml_there_are_no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    registry = CollectorRegistry()
    registry.register(GpuCollector())
    assert not list(registry.collect())
