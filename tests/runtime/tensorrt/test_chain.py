"""From the service to engines and back: it finds what is missing, has `tokenfold build` build it in
a process, and loads what that has left.

TensorRT for RTX builds, for a GPU that is not here; what is loaded then runs in the stand-in, which
is shown the bytes.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.native.cuda_host import tensorrt as plugins
from tests.runtime.cuda.stand_ins import EngineStandIn
from tests.runtime.tensorrt import ahead, fake_engine
from tests.runtime.tensorrt.ahead import GPU, RTX, needs_rtx
from tests.runtime.tensorrt.bundles import bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import GRAPHS
from tokenfold.runtime import libraries
from tokenfold.runtime.tensorrt import flavour, process, runtime, target
from tokenfold.runtime.tensorrt.engine import Engine
from tokenfold.runtime.tensorrt.engines import Engines
from tokenfold.runtime.tensorrt.flavour import Flavour
from tokenfold.runtime.tensorrt.origin import EngineError, Origin
from tokenfold.runtime.tensorrt.plugins import Plugins
from tokenfold.service.scheduling.backends import kinds
from tokenfold.service.scheduling.backends.kinds import BackendKind

pytestmark = [needs_rtx, pytest.mark.timeout(600)]


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BackendKind:
    """As on a machine with that GPU."""
    monkeypatch.setenv(libraries.VARIABLES["tensorrt"], str(plugins.build()))
    own = ahead.rtx()
    monkeypatch.setattr(flavour, "load", lambda: own)
    monkeypatch.setattr(target, "here", lambda own, found: target.ahead(own, found, GPU))
    plain = process.command_line

    def command_line(made: Path, engines: Path) -> list[str]:
        return plain(made, engines, "--tensorrt", RTX, "--device", GPU)

    monkeypatch.setattr(process, "command_line", command_line)
    return kinds.tensorrt(tmp_path)


def prepare(kind: BackendKind, made: Bundle) -> list[process.Progress]:
    told: list[process.Progress] = []
    kind.prepare(made, told.append, threading.Event())
    return told


def origins(made: Bundle, folder: Path) -> list[Origin]:
    """The engines that are taken."""
    graphs = GRAPHS[made.manifest.kind]
    return [one for graph in graphs for one in runtime.chosen(made, graph, folder)]


def test_engines_are_built_and_found(
    kind: BackendKind, tmp_path: Path, tensorrt: EngineStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bundle("clip", "fp16")
    image, text = origins(made, tmp_path)
    assert kind.unprepared(made) == [image.file, text.file]

    told = prepare(kind, made)
    assert list(dict.fromkeys(one.engine for one in told)) == ["image fp16", "text fp16"]
    assert told[-1].done == 1.0
    assert kind.unprepared(made) == []
    assert origins(made, tmp_path) == [image, text]
    engines = Engines(tmp_path, made)
    contents = {one.file: engines.read(one) for one in (image, text)}
    assert all(b"accelerators={sm89 }" in content for content in contents.values())

    loaded: dict[str, bytes] = {}

    def load(own: Flavour, registered: Plugins, origin: Origin, content: bytes) -> Engine:
        assert (own, registered) == (ahead.rtx(), ahead.registered())
        loaded[origin.file] = content
        stands_in = fake_engine.of_graph(made.folder / origin.graph, origin).content
        return Engine(tensorrt.flavour, None, origin, stands_in)

    monkeypatch.setattr(runtime, "Engine", load)
    backend = kind.load(made)
    assert backend.native
    backend.close()
    assert loaded == contents

    # A bit has flipped: that engine is built anew, and no other.
    path = engines.find(text).path
    kept = engines.find(image).path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert kind.unprepared(made) == [text.file]
    with pytest.raises(EngineError, match="is damaged"):
        kind.load(made)
    assert [one.phase for one in prepare(kind, made) if one.engine == "image fp16"] == [
        "It is there"
    ]
    assert kind.unprepared(made) == []
    assert engines.find(image).path.stat().st_mtime_ns == kept.st_mtime_ns
    kind.load(made).close()
    assert loaded[text.file] == engines.read(text)


def test_a_build_that_is_not_wanted_any_more(kind: BackendKind, tmp_path: Path) -> None:
    """What was built before is kept, and nothing half is left."""
    made = bundle("vilt", "fp16")
    vision, joint = origins(made, tmp_path)
    stopping = threading.Event()

    def told(found: process.Progress) -> None:
        if found.engine.startswith("joint"):
            stopping.set()

    with pytest.raises(process.StoppedError):
        kind.prepare(made, told, stopping)
    assert kind.unprepared(made) == [joint.file]
    left = [path.name for path in Engines(tmp_path, made).folder.iterdir()]
    assert vision.file in left
    assert not [name for name in left if name.startswith(joint.file)]
