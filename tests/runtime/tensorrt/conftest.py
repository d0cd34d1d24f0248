"""Fixtures: folder of bundles, fake CUDA and fake TensorRT."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.runtime.cuda.fake_backends import FakeTensorRT
from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.tensorrt import bundles
from tokenfold.runtime.cuda import device


@pytest.fixture(scope="session", autouse=True)
def folder_of_bundles(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Set one folder of bundles for all workers of a test run."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    bundles.folder = run / "bundles"
    bundles.folder.mkdir(exist_ok=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    """Replace CUDA, and check at the end that all resources were freed."""
    runtime = FakeRuntime()
    monkeypatch.setattr(device, "runtime", runtime)
    yield runtime
    # Streams may remain, when the traceback of a living exception refers to their runner.
    assert set(+runtime.live) <= {"stream"}


@pytest.fixture
def tensorrt(gpu: FakeRuntime) -> Iterator[FakeTensorRT]:
    """Create a fake TensorRT, and check at the end that it had no problems."""
    tensorrt = FakeTensorRT(gpu)
    yield tensorrt
    assert not tensorrt.api.problems
