"""Tests of GPU sessions: missing parts are reported, instead of a silent fallback to the CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from tests.runtime.cuda.fake_runtime import FakeRuntime
from tokenfold.runtime import libraries
from tokenfold.runtime.cuda import device, session
from tokenfold.runtime.cuda.device import Stream
from tokenfold.runtime.graph import open_graph


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "runtime", FakeRuntime())


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [session.PROVIDER])


def test_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "runtime", FakeRuntime(devices=0))
    assert session.missing() == "no GPU was found"


@pytest.mark.usefixtures("gpu")
def test_missing_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "onnxruntime-gpu" in str(session.missing())
    with pytest.raises(RuntimeError, match="onnxruntime-gpu"):
        open_graph(Path("model.onnx"), device="cuda")


@pytest.mark.usefixtures("gpu", "provider")
def test_missing_op_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(libraries.VARIABLES["cuda"], "none")
    assert "make plugins-cuda" in str(session.missing())
    built = tmp_path / "library.so"
    built.touch()
    monkeypatch.setenv(libraries.VARIABLES["cuda"], str(built))
    assert session.missing() is None


@pytest.mark.usefixtures("gpu", "provider")
def test_a_provider_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ONNX Runtime then opens the graph on the CPU, and mentions that only in its log."""
    monkeypatch.setenv(libraries.VARIABLES["cuda"], "none")
    arguments: dict[str, object] = {}

    class CpuSession:
        def __init__(self, path: Path, options: ort.SessionOptions, providers: list[object]):
            arguments.update(path=path, options=options, providers=providers)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", CpuSession)
    stream = Stream()
    with pytest.raises(RuntimeError, match="could not load"):
        session.open_session(tmp_path / "model.onnx", stream)
    providers = arguments["providers"]
    assert isinstance(providers, list)
    assert providers[0][1]["user_compute_stream"] == str(int(stream.handle))
    stream.free()


def test_asynchronous_options_disable_synchronization() -> None:
    options = session.asynchronous_options()
    assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
