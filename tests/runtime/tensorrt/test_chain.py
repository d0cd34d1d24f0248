"""Tests of the service with engines: it finds missing engines, builds them in a child process, and
loads them.

TensorRT for RTX builds the engines without a GPU. The fake TensorRT runs their descriptions, and
the tests compare the bytes that the service loads.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.native.cuda_host import tensorrt as cuda_host_plugins
from tests.runtime.cuda.fake_backends import FakeTensorRT
from tests.runtime.tensorrt import aot, fake_engine
from tests.runtime.tensorrt.aot import GPU, RTX, needs_rtx
from tests.runtime.tensorrt.bundles import bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import GRAPHS
from tokenfold.runtime import libraries
from tokenfold.runtime.tensorrt import process, runtime, target, variant
from tokenfold.runtime.tensorrt.engine import Engine
from tokenfold.runtime.tensorrt.plugins import PluginLibrary
from tokenfold.runtime.tensorrt.spec import EngineError, EngineSpec
from tokenfold.runtime.tensorrt.store import EngineStore
from tokenfold.runtime.tensorrt.variant import TensorRTVariant
from tokenfold.service.scheduling.backends.kinds import BackendKind, TensorRTKind

pytestmark = [needs_rtx, pytest.mark.timeout(600)]


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BackendKind:
    """Return the TensorRT backend, as on a machine with the GPU that engines are built for."""
    monkeypatch.setenv(libraries.VARIABLES["tensorrt"], str(cuda_host_plugins.build()))
    rtx = aot.rtx()
    monkeypatch.setattr(variant, "load", lambda: rtx)
    monkeypatch.setattr(
        target,
        "current_target",
        lambda loaded, library: target.aot_target(loaded, library, GPU),
    )
    original = process.command_line

    def command_line(exported: Path, engines: Path) -> list[str]:
        return original(exported, engines, "--tensorrt", RTX, "--device", GPU)

    monkeypatch.setattr(process, "command_line", command_line)
    return TensorRTKind(tmp_path)


def prepare(kind: BackendKind, exported: Bundle) -> list[process.Progress]:
    reports: list[process.Progress] = []
    kind.prepare(exported, reports.append, threading.Event())
    return reports


def selected_engines(exported: Bundle, folder: Path) -> list[EngineSpec]:
    """Return the selected engines of all graphs."""
    graphs = GRAPHS[exported.manifest.kind]
    return [spec for graph in graphs for spec in runtime.select_engines(exported, graph, folder)]


def test_missing_engines_are_built_and_loaded(
    kind: BackendKind, tmp_path: Path, tensorrt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = bundle("clip", "fp16")
    image, text = selected_engines(exported, tmp_path)
    assert kind.unprepared(exported) == [image.file, text.file]

    reports = prepare(kind, exported)
    assert list(dict.fromkeys(report.engine for report in reports)) == ["image fp16", "text fp16"]
    assert reports[-1].done == 1.0
    assert kind.unprepared(exported) == []
    assert selected_engines(exported, tmp_path) == [image, text]
    engines = EngineStore(tmp_path, exported)
    contents = {spec.file: engines.read(spec) for spec in (image, text)}
    assert all(b"accelerators={sm89 }" in content for content in contents.values())

    loaded: dict[str, bytes] = {}

    def load(
        loaded_variant: TensorRTVariant, library: PluginLibrary, spec: EngineSpec, content: bytes
    ) -> Engine:
        assert (loaded_variant, library) == (aot.rtx(), aot.plugin_library())
        loaded[spec.file] = content
        description = fake_engine.describe_graph(exported.folder / spec.graph, spec)
        return Engine(tensorrt.variant, None, spec, description.content)

    monkeypatch.setattr(runtime, "Engine", load)
    backend = kind.load(exported)
    assert backend.native
    backend.close()
    assert loaded == contents

    # After a bit flip, only the damaged engine is built again.
    path = engines.find(text).path
    image_stat = engines.find(image).path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert kind.unprepared(exported) == [text.file]
    with pytest.raises(EngineError, match="is damaged"):
        kind.load(exported)
    assert [
        report.phase for report in prepare(kind, exported) if report.engine == "image fp16"
    ] == ["Already built"]
    assert kind.unprepared(exported) == []
    assert engines.find(image).path.stat().st_mtime_ns == image_stat.st_mtime_ns
    kind.load(exported).close()
    assert loaded[text.file] == engines.read(text)


def test_a_stopped_build_keeps_finished_engines(kind: BackendKind, tmp_path: Path) -> None:
    """No partially written engine is left."""
    exported = bundle("vilt", "fp16")
    vision, joint = selected_engines(exported, tmp_path)
    stopping = threading.Event()

    def progress(report: process.Progress) -> None:
        if report.engine.startswith("joint"):
            stopping.set()

    with pytest.raises(process.StoppedError):
        kind.prepare(exported, progress, stopping)
    assert kind.unprepared(exported) == [joint.file]
    names = [path.name for path in EngineStore(tmp_path, exported).folder.iterdir()]
    assert vision.file in names
    assert not [name for name in names if name.startswith(joint.file)]
