"""What tests of the builder and of the runtime share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.cuda.stand_ins import EngineStandIn
from tests.runtime.tensorrt import bundles
from tokenfold.runtime.cuda import device


@pytest.fixture(scope="session", autouse=True)
def folder_of_bundles(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One for all workers of a run."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    bundles.folder = run / "bundles"
    bundles.folder.mkdir(exist_ok=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    """In place of CUDA. Whatever a test took is given back at its end."""
    own = FakeRuntime()
    monkeypatch.setattr(device, "runtime", own)
    yield own
    # But streams, where an error that is still there has their runner in its traceback.
    assert set(+own.live) <= {"stream"}


@pytest.fixture
def tensorrt(gpu: FakeRuntime) -> Iterator[EngineStandIn]:
    """In place of TensorRT, which had no problem at the end."""
    own = EngineStandIn(gpu)
    yield own
    assert not own.api.problems
