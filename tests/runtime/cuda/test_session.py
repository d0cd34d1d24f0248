"""What is missing to run on a GPU is said, before ONNX Runtime falls back to the CPU by itself."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from tests.runtime.cuda.fake_runtime import FakeRuntime
from tokenfold.runtime.cuda import device, session
from tokenfold.runtime.cuda.device import Stream
from tokenfold.runtime.graph import open_graph
from tokenfold.runtime.native import onnxruntime as library


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "runtime", FakeRuntime())


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [session.PROVIDER])


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "runtime", FakeRuntime(devices=0))
    assert session.missing() == "no GPU was found"


@pytest.mark.usefixtures("gpu")
def test_no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "onnxruntime-gpu" in str(session.missing())
    with pytest.raises(RuntimeError, match="onnxruntime-gpu"):
        open_graph(Path("model.onnx"), device="cuda")


@pytest.mark.usefixtures("gpu", "provider")
def test_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(library.CUDA_VARIABLE, "none")
    assert "make plugins-cuda" in str(session.missing())
    built = tmp_path / "library.so"
    built.touch()
    monkeypatch.setenv(library.CUDA_VARIABLE, str(built))
    assert session.missing() is None


@pytest.mark.usefixtures("gpu", "provider")
def test_a_provider_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ONNX Runtime then opens the graph on the CPU, and only its log says so."""
    monkeypatch.setenv(library.CUDA_VARIABLE, "none")
    given: dict[str, object] = {}

    class OnTheCpu:
        def __init__(self, path: Path, options: ort.SessionOptions, providers: list[object]):
            given.update(path=path, options=options, providers=providers)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", OnTheCpu)
    stream = Stream()
    with pytest.raises(RuntimeError, match="could not load"):
        session.opened(tmp_path / "model.onnx", stream)
    providers = given["providers"]
    assert isinstance(providers, list)
    assert providers[0][1]["user_compute_stream"] == str(int(stream.handle))
    stream.free()


def test_runs_that_do_not_wait() -> None:
    options = session.unsynchronised()
    assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
