"""A bundle's engines, found and run: in a TensorRT and on a GPU that are not there."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.runtime.cuda import fake_session
from tests.runtime.cuda.fake_runtime import FakeRuntime
from tests.runtime.cuda.stand_ins import EngineStandIn
from tests.runtime.tensorrt import fake_engine
from tests.runtime.tensorrt.bundles import bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import GRAPHS
from tokenfold.bundle.workload import Plan
from tokenfold.runtime import libraries
from tokenfold.runtime.cuda import device
from tokenfold.runtime.cuda.device import CudaError
from tokenfold.runtime.cuda.graph import CudaGraph
from tokenfold.runtime.dual import DualSession
from tokenfold.runtime.pair import PairSession
from tokenfold.runtime.session import Session
from tokenfold.runtime.tensorrt import flavour, plugins, runtime, target
from tokenfold.runtime.tensorrt.engines import Engines
from tokenfold.runtime.tensorrt.flavour import Flavour, TensorRtError
from tokenfold.runtime.tensorrt.origin import EngineError, Origin, origins
from tokenfold.runtime.tensorrt.plugins import Plugins

VIT = "vit"
MODEL = "model.onnx"
LIBRARY = "ab" * 32


@pytest.fixture
def here(tensorrt: EngineStandIn, monkeypatch: pytest.MonkeyPatch) -> EngineStandIn:
    """It is installed, and so are the plugins."""
    handle: Any = SimpleNamespace(TokenfoldTensorRtProblem=lambda: b"")
    monkeypatch.setattr(flavour, "load", lambda: tensorrt.flavour)
    monkeypatch.setattr(plugins, "registered", lambda _: Plugins(LIBRARY, handle))
    return tensorrt


@pytest.fixture
def vit(here: EngineStandIn) -> Bundle:
    assert here is not None
    return bundle(VIT, "fp16")


def wanted(made: Bundle, *, bfloat16: bool = False, static: bool = False) -> list[Origin]:
    own = target.here(flavour.load(), plugins.registered(flavour.load()))
    return origins(made, own, precision="bf16" if bfloat16 else None, static=static)


def build(made: Bundle, folder: Path, every: Sequence[Origin]) -> list[Path]:
    """What `tokenfold build` leaves."""
    engines = Engines(folder, made)
    return [
        engines.write(origin, fake_engine.of_graph(made.folder / origin.graph, origin).content).path
        for origin in every
    ]


def loaded(here: EngineStandIn) -> int:
    """How often TensorRT was given something."""
    return here.api.calls["deserialize_cuda_engine"]


def images(made: Bundle, count: int) -> npt.NDArray[np.uint8]:
    shape = (count, *made.manifest.preprocess.size, 3)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def check(logits: npt.NDArray[np.float32], given: npt.NDArray[np.uint8], plan: Plan) -> None:
    assert logits.shape == (len(given), 5)
    np.testing.assert_array_equal(logits[:, :2], fake_session.logits(given, plan))


def test_a_classifier(here: EngineStandIn, vit: Bundle, tmp_path: Path) -> None:
    build(vit, tmp_path, wanted(vit))
    plans = [level.plan for level in vit.manifest.levels.values()]
    session = Session(vit, device="tensorrt", engines=tmp_path)
    assert session.native
    session.warm(plans)
    assert session.graph.recorded == 14 * len(set(plans))
    for plan in (*plans, (1, 0, 1)):
        for count in (1, 3, 40, 130):
            given = images(vit, count)
            found = session.run(given, plan, slots=True)
            check(found.logits, given, plan)
            assert found.slots is not None
            assert found.slots.shape == (count, 17)
            np.testing.assert_array_equal(found.slots[:, :3], fake_session.slots(given, plan))
    session.close()
    assert not +here.api.live


def test_a_dual_encoder(here: EngineStandIn, tmp_path: Path) -> None:
    made = bundle("clip", "fp16")
    build(made, tmp_path, wanted(made))
    session = DualSession(made, device="tensorrt", engines=tmp_path)
    assert here.api.live == {"runtime": 2, "engine": 2, "context": 1}
    plan = made.manifest.levels["half"].plan
    session.warm([plan])
    given = images(made, 5)
    vectors, slots = session.embed_images(given, plan)
    np.testing.assert_array_equal(vectors[:, 0], fake_session.logits(given, plan)[:, 0] + _n(plan))
    assert slots is None
    assert made.manifest.text is not None
    for length in (1, made.manifest.text.most_tokens):
        ids = np.arange(3 * length).reshape(3, length)
        found = session.embed_texts(ids, np.ones(ids.shape, np.float32))
        assert found.shape == (3, 40)
        assert found[:, 0].tolist() == (ids.sum(1) + length).tolist()
    longer = np.ones((1, made.manifest.text.most_tokens + 1), np.int64)
    with pytest.raises(EngineError, match="takes input_ids of 1 to 1 x 1 to "):
        session.embed_texts(longer, longer.astype(np.float32))
    session.close()
    assert not +here.api.live


def _n(plan: Plan) -> int:
    return fake_session.number(plan)


def test_an_image_with_a_text(here: EngineStandIn, tmp_path: Path) -> None:
    made = bundle("meter", "fp16")
    build(made, tmp_path, wanted(made))
    session = PairSession(made, device="tensorrt", engines=tmp_path)
    plan = made.manifest.levels["some"].plan
    session.warm([plan])
    tokens = session.embed(images(made, 2))
    assert tokens.shape == (2, 17, 48)
    assert tokens[:, 0, 0].tolist() == fake_session.logits(images(made, 2), ())[:, 0].tolist()
    ids, size = np.ones((2, 5), np.int64), np.ones((2, 5), np.float32)
    first = session.fuse(tokens, ids, size, plan, task="reason", slots=True)
    assert first.logits is None
    assert first.text_slots is not None
    assert first.image_slots is not None
    assert (first.text_slots.shape, first.image_slots.shape) == ((2, 5), (2, 17))
    second = session.fuse(
        tokens, ids, size, plan, task="reason", second=True, other=np.ones_like(first.pooled)
    )
    assert second.logits is not None
    assert second.logits.shape == (2, 2)
    np.testing.assert_allclose(second.pooled[:, 0], first.pooled[:, 0] + first.pooled.shape[1])
    with pytest.raises(EngineError, match="takes counts of 0 to "):
        session.fuse(tokens, ids, size, (10**6, *plan[1:]), task="vqa")
    session.close()
    assert not +here.api.live


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", [VIT, "clip", "meter"])
def test_what_is_still_to_be_built(kind: str, tmp_path: Path) -> None:
    made = bundle(kind, "fp16")
    every = wanted(made)
    graphs = [Path(graph).stem for graph in GRAPHS[made.manifest.kind]]
    names = runtime.unbuilt(made, tmp_path)
    assert [name.split("--")[0] for name in names] == graphs
    paths = build(made, tmp_path, every)
    assert runtime.unbuilt(made, tmp_path) == []
    for path, origin in zip(paths, every, strict=True):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert len(runtime.unbuilt(made, tmp_path)) == 1
        path.unlink()
        # One in bfloat16 will do.
        build(made, tmp_path, [origin.model_copy(update={"precision": "bf16"})])
        assert runtime.unbuilt(made, tmp_path) == []


@pytest.mark.usefixtures("here")
def test_what_tensorrt_cannot_run(tmp_path: Path) -> None:
    made = bundle(VIT, "int8")
    for ask in (
        lambda: runtime.unbuilt(made, tmp_path),
        lambda: Session(made, device="tensorrt", engines=tmp_path),
    ):
        with pytest.raises(EngineError, match="is an int8 bundle, which is for the CPU"):
            ask()


def _missing(_: Path) -> None:
    return


def _short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _nothing(path: Path) -> None:
    path.write_bytes(b"\x7fELF" * 100)


def _another(path: Path) -> None:
    """An engine of an older graph."""
    line, _, content = path.read_bytes().partition(b"\n")
    (digest,) = (one.sha256 for one in wanted(bundle(VIT, "fp16")))
    path.write_bytes(line.replace(digest.encode(), b"0" * 64, 1) + b"\n" + content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_missing, "is not built"),
        (_short, "is damaged: it has not the length that it says"),
        (_flipped, "is damaged: its sha256 differs"),
        (_nothing, "is no engine of this version"),
        (_another, "was built from something else: its sha256 differs"),
    ],
)
def test_what_is_not_right_is_not_loaded(
    here: EngineStandIn, vit: Bundle, tmp_path: Path, harm: Any, said: str
) -> None:
    if harm is not _missing:
        (path,) = build(vit, tmp_path, wanted(vit))
        harm(path)
    with pytest.raises(EngineError, match=said):
        Session(vit, device="tensorrt", engines=tmp_path)
    assert loaded(here) == 0
    assert len(runtime.unbuilt(vit, tmp_path)) == 1


def test_foreign_engines_are_not_there(here: EngineStandIn, vit: Bundle, tmp_path: Path) -> None:
    (own,) = wanted(vit)
    for change in ({"tensorrt": "tensorrt 10.9.0"}, {"gpu": "Other GPU sm_90"}, {"plugins": None}):
        other = own.target.model_copy(update=change)
        build(vit, tmp_path, [own.model_copy(update={"target": other})])
    assert runtime.unbuilt(vit, tmp_path) == [own.file]
    with pytest.raises(EngineError, match="is not built"):
        Session(vit, device="tensorrt", engines=tmp_path)
    assert loaded(here) == 0


def test_what_tensorrt_itself_refuses(here: EngineStandIn, vit: Bundle, tmp_path: Path) -> None:
    (own,) = wanted(vit)
    Engines(tmp_path, vit).write(own, b"an engine that this TensorRT cannot read")
    with pytest.raises(EngineError, match=f"{own.file} could not be loaded: .*magicTag failed"):
        Session(vit, device="tensorrt", engines=tmp_path)
    assert loaded(here) == 1
    # It would not the next time either, so it is built anew.
    assert runtime.unbuilt(vit, tmp_path) == [own.file]


def test_a_damaged_engine_of_a_plan_is_left_out(
    here: EngineStandIn, vit: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That of all plans does what it would have done."""
    paths = build(vit, tmp_path, wanted(vit, static=True))
    _flipped(paths[-1])
    session = Session(vit, device="tensorrt", engines=tmp_path)
    assert loaded(here) == len(paths) - 1
    (record,) = caplog.records
    assert "is left out" in record.getMessage()
    assert paths[-1].name in record.getMessage()
    session.close()


def test_a_damaged_engine_in_bfloat16_is_left_out(
    here: EngineStandIn, vit: Bundle, tmp_path: Path
) -> None:
    build(vit, tmp_path, wanted(vit))
    (path,) = build(vit, tmp_path, wanted(vit, bfloat16=True))
    assert [one.precision for one in runtime.chosen(vit, MODEL, tmp_path)] == ["bf16"]
    _flipped(path)
    assert runtime.unbuilt(vit, tmp_path) == []
    assert [one.precision for one in runtime.chosen(vit, MODEL, tmp_path)] == ["fp16"]
    Session(vit, device="tensorrt", engines=tmp_path).close()
    assert loaded(here) == 1


def test_which_engines_are_taken(here: EngineStandIn, vit: Bundle, tmp_path: Path) -> None:
    def chosen(*, static: bool = True) -> list[tuple[str, bool]]:
        found = runtime.chosen(vit, MODEL, tmp_path, static=static)
        return [(one.precision, one.plan is not None) for one in found]

    own, other = wanted(vit, static=True), wanted(vit, bfloat16=True, static=True)
    assert chosen() == [("fp16", False)]
    build(vit, tmp_path, own[:2])
    assert chosen() == [("fp16", False), ("fp16", True)]
    assert chosen(static=False) == [("fp16", False)]
    build(vit, tmp_path, other[2:3])
    assert chosen() == [("fp16", False), ("fp16", True)]
    build(vit, tmp_path, other[:1])
    assert chosen() == [("bf16", False), ("bf16", True)]
    session = Session(vit, device="tensorrt", engines=tmp_path)
    assert here.api.live["engine"] == 2
    session.close()
    session = Session(vit, device="tensorrt", engines=tmp_path, static=False)
    assert here.api.live["engine"] == 1
    plan = own[1].plan
    assert plan is not None
    found = session.run(images(vit, 2), plan)
    check(found.logits, images(vit, 2), plan)
    session.close()


def test_not_enough_memory_to_open(
    here: EngineStandIn, vit: Bundle, gpu: FakeRuntime, tmp_path: Path
) -> None:
    paths = build(vit, tmp_path, wanted(vit, static=True)[:3])
    session = Session(vit, device="tensorrt", engines=tmp_path)
    blocks = gpu.live["device"]
    session.close()
    for gpu.blocks in range(blocks):
        with pytest.raises((EngineError, CudaError)) as caught:
            Session(vit, device="tensorrt", engines=tmp_path)
        # What comes next finds room, though the error may still be there.
        assert not here.api.live["engine"]
        assert gpu.live["device"] == gpu.live["host"] == 0
        del caught
    # Another day they can be loaded.
    assert all(path.exists() for path in paths)


def test_not_enough_memory_to_warm(
    here: EngineStandIn, vit: Bundle, gpu: FakeRuntime, tmp_path: Path
) -> None:
    build(vit, tmp_path, wanted(vit))
    session = Session(vit, device="tensorrt", engines=tmp_path)
    gpu.blocks = gpu.live["device"] + 5
    with pytest.raises(EngineError, match=r"no context could be made: .*OutOfMemory") as caught:
        session.warm([vit.manifest.levels["some"].plan])
    assert not +here.api.live
    assert gpu.live["device"] == gpu.live["host"] == 0
    with pytest.raises(CudaError, match="closed"):
        session.run(images(vit, 1), vit.manifest.levels["some"].plan)
    del caught


def test_one_graph_cannot_be_opened(here: EngineStandIn, gpu: FakeRuntime, tmp_path: Path) -> None:
    made = bundle("clip", "fp16")
    build(made, tmp_path, wanted(made)[:1])
    with pytest.raises(EngineError, match=r"text--.* is not built"):
        DualSession(made, device="tensorrt", engines=tmp_path)
    assert not +here.api.live
    assert not +gpu.live


class TestMissing:
    """Why no engines can be run."""

    @pytest.mark.usefixtures("here")
    def test_nothing(self) -> None:
        assert runtime.missing() is None

    def test_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device, "runtime", None)
        assert "cuda-bindings" in str(runtime.missing())
        monkeypatch.setattr(device, "runtime", FakeRuntime(devices=0))
        assert runtime.missing() == "no GPU was found"

    def test_one_that_says_what_it_is(self, here: EngineStandIn, gpu: FakeRuntime) -> None:
        assert here is not None
        gpu.failing["cudaGetDeviceProperties"] = 1
        assert "cudaGetDeviceProperties: fake" in str(runtime.missing())

    @pytest.mark.usefixtures("gpu")
    def test_tensorrt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flavour, "installed", lambda: ())
        assert runtime.missing() == ("TensorRT is not installed: pip install 'tokenfold[tensorrt]'")

    @pytest.mark.usefixtures("gpu")
    def test_one_that_loads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> Flavour:
            raise TensorRtError("tensorrt cannot be loaded: libnvinfer.so.11 is not there")

        monkeypatch.setattr(flavour, "load", broken)
        assert "libnvinfer" in str(runtime.missing())

    def test_plugins(
        self, tensorrt: EngineStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(flavour, "load", lambda: tensorrt.flavour)
        monkeypatch.setenv(libraries.VARIABLES["tensorrt"], "none")
        assert "make plugins-tensorrt" in str(runtime.missing())
        monkeypatch.setenv(libraries.VARIABLES["tensorrt"], str(tmp_path / "library.so"))
        assert "which is not a file" in str(runtime.missing())
        (tmp_path / "library.so").write_bytes(b"nothing")
        assert "is no library of plugins" in str(runtime.missing())

    def test_plugins_that_tensorrt_takes(
        self, tensorrt: EngineStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        path = tmp_path / "library.so"
        path.write_bytes(b"a library")
        monkeypatch.setenv(libraries.VARIABLES["tensorrt"], str(path))
        monkeypatch.setattr(flavour, "load", lambda: tensorrt.flavour)
        monkeypatch.setattr(
            ctypes, "CDLL", lambda _: SimpleNamespace(TokenfoldTensorRtProblem=SimpleNamespace())
        )
        tensorrt.api.libraries = None
        assert "tensorrt 11.9.0 does not take the plugins of" in str(runtime.missing())
        tensorrt.api.libraries = []
        assert runtime.missing() is None
        assert runtime.missing() is None
        assert tensorrt.api.libraries == [str(path)]

    def test_a_gpu_that_it_knows(self, here: EngineStandIn) -> None:
        """TensorRT for RTX is not for all."""
        kinds = SimpleNamespace(__members__={"NONE": 0, "CURRENT": 1, "SM89": 2, "SM120": 3})
        here.api.ComputeCapability = kinds
        assert runtime.missing() == (
            "tensorrt 11.9.0 does not build for sm_90; it does for sm_89, sm_120"
        )
        kinds.__members__["SM90"] = 4
        assert runtime.missing() is None
        assert target.here(here.flavour, None).gpu == "sm_90"


@pytest.mark.usefixtures("here")
def test_graphs_are_opened_where_engines_are_kept(
    vit: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENFOLD_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build(vit, tmp_path / "tokenfold" / "engines", wanted(vit))
    session = Session(vit, device="tensorrt")
    assert isinstance(session.graph, CudaGraph)
    session.close()
