"""Tests of selecting, opening and running a bundle's engines, with a fake TensorRT and GPU."""

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
from tests.runtime.cuda.fake_backends import FakeTensorRT
from tests.runtime.cuda.fake_runtime import FakeRuntime
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
from tokenfold.runtime.tensorrt import plugins, runtime, target, variant
from tokenfold.runtime.tensorrt.plugins import PluginLibrary
from tokenfold.runtime.tensorrt.spec import EngineError, EngineSpec, engine_specs
from tokenfold.runtime.tensorrt.store import EngineStore
from tokenfold.runtime.tensorrt.variant import TensorRTError, TensorRTVariant

VIT = "vit"
MODEL = "model.onnx"
LIBRARY = "ab" * 32


@pytest.fixture
def installed(tensorrt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """Install the fake TensorRT and its plugins."""
    handle: Any = SimpleNamespace(TokenfoldTensorRtProblem=lambda: b"")
    monkeypatch.setattr(variant, "load", lambda: tensorrt.variant)
    monkeypatch.setattr(plugins, "register", lambda _: PluginLibrary(LIBRARY, handle))
    return tensorrt


@pytest.fixture
def vit(installed: FakeTensorRT) -> Bundle:
    assert installed is not None
    return bundle(VIT, "fp16")


def needed_engines(
    exported: Bundle, *, bfloat16: bool = False, static: bool = False
) -> list[EngineSpec]:
    """Return the engines of a bundle for the current target."""
    build_target = target.current_target(variant.load(), plugins.register(variant.load()))
    return engine_specs(
        exported, build_target, precision="bf16" if bfloat16 else None, static=static
    )


def build(exported: Bundle, folder: Path, specs: Sequence[EngineSpec]) -> list[Path]:
    """Write fake engines to the store, and return their files."""
    store = EngineStore(folder, exported)
    return [
        store.write(
            spec, fake_engine.describe_graph(exported.folder / spec.graph, spec).content
        ).path
        for spec in specs
    ]


def load_count(installed: FakeTensorRT) -> int:
    """Return how many engines TensorRT was asked to load."""
    return installed.api.calls["deserialize_cuda_engine"]


def random_images(exported: Bundle, count: int) -> npt.NDArray[np.uint8]:
    shape = (count, *exported.manifest.preprocess.size, 3)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def check(logits: npt.NDArray[np.float32], images: npt.NDArray[np.uint8], plan: Plan) -> None:
    assert logits.shape == (len(images), 5)
    np.testing.assert_array_equal(logits[:, :2], fake_session.logits(images, plan))


def test_run_a_classifier(installed: FakeTensorRT, vit: Bundle, tmp_path: Path) -> None:
    build(vit, tmp_path, needed_engines(vit))
    plans = [level.plan for level in vit.manifest.levels.values()]
    session = Session(vit, device="tensorrt", engines=tmp_path)
    assert session.native
    session.warm(plans)
    assert session.graph.recorded == 14 * len(set(plans))
    for plan in (*plans, (1, 0, 1)):
        for count in (1, 3, 40, 130):
            images = random_images(vit, count)
            output = session.run(images, plan, slots=True)
            check(output.logits, images, plan)
            assert output.slots is not None
            assert output.slots.shape == (count, 17)
            np.testing.assert_array_equal(output.slots[:, :3], fake_session.slots(images, plan))
    session.close()
    assert not +installed.api.live


def test_run_a_dual_encoder(installed: FakeTensorRT, tmp_path: Path) -> None:
    exported = bundle("clip", "fp16")
    build(exported, tmp_path, needed_engines(exported))
    session = DualSession(exported, device="tensorrt", engines=tmp_path)
    assert installed.api.live == {"runtime": 2, "engine": 2, "context": 1}
    plan = exported.manifest.levels["half"].plan
    session.warm([plan])
    images = random_images(exported, 5)
    vectors, slots = session.embed_images(images, plan)
    np.testing.assert_array_equal(
        vectors[:, 0], fake_session.logits(images, plan)[:, 0] + fake_session.plan_number(plan)
    )
    assert slots is None
    assert exported.manifest.text is not None
    for length in (1, exported.manifest.text.most_tokens):
        ids = np.arange(3 * length).reshape(3, length)
        vectors = session.embed_texts(ids, np.ones(ids.shape, np.float32))
        assert vectors.shape == (3, 40)
        assert vectors[:, 0].tolist() == (ids.sum(1) + length).tolist()
    longer = np.ones((1, exported.manifest.text.most_tokens + 1), np.int64)
    with pytest.raises(EngineError, match="takes input_ids of 1 to 1 x 1 to "):
        session.embed_texts(longer, longer.astype(np.float32))
    session.close()
    assert not +installed.api.live


def test_run_an_image_text_network(installed: FakeTensorRT, tmp_path: Path) -> None:
    exported = bundle("meter", "fp16")
    build(exported, tmp_path, needed_engines(exported))
    session = PairSession(exported, device="tensorrt", engines=tmp_path)
    plan = exported.manifest.levels["some"].plan
    session.warm([plan])
    tokens = session.embed(random_images(exported, 2))
    assert tokens.shape == (2, 17, 48)
    assert (
        tokens[:, 0, 0].tolist()
        == fake_session.logits(random_images(exported, 2), ())[:, 0].tolist()
    )
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
    assert not +installed.api.live


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", [VIT, "clip", "meter"])
def test_missing_engines(kind: str, tmp_path: Path) -> None:
    exported = bundle(kind, "fp16")
    specs = needed_engines(exported)
    graphs = [Path(graph).stem for graph in GRAPHS[exported.manifest.kind]]
    names = runtime.missing_engines(exported, tmp_path)
    assert [name.split("--")[0] for name in names] == graphs
    paths = build(exported, tmp_path, specs)
    assert runtime.missing_engines(exported, tmp_path) == []
    for path, spec in zip(paths, specs, strict=True):
        path.write_bytes(path.read_bytes()[:-1])
        assert len(runtime.missing_engines(exported, tmp_path)) == 1
        path.unlink()
        # An engine in bfloat16 replaces it.
        build(exported, tmp_path, [spec.model_copy(update={"precision": "bf16"})])
        assert runtime.missing_engines(exported, tmp_path) == []


@pytest.mark.usefixtures("installed")
def test_unsupported_bundles(tmp_path: Path) -> None:
    exported = bundle(VIT, "int8")
    for call in (
        lambda: runtime.missing_engines(exported, tmp_path),
        lambda: Session(exported, device="tensorrt", engines=tmp_path),
    ):
        with pytest.raises(EngineError, match="is an int8 bundle, which is for the CPU"):
            call()


def _not_written(_: Path) -> None:
    return


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _replace_by_other_file(path: Path) -> None:
    path.write_bytes(b"\x7fELF" * 100)


def _replace_digest(path: Path) -> None:
    """Make the file an engine of another graph."""
    line, _, content = path.read_bytes().partition(b"\n")
    (digest,) = (spec.sha256 for spec in needed_engines(bundle(VIT, "fp16")))
    path.write_bytes(line.replace(digest.encode(), b"0" * 64, 1) + b"\n" + content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_not_written, "is not built"),
        (_truncate, "is damaged: it has .* bytes instead of"),
        (_flip_bit, "is damaged: its sha256 differs"),
        (_replace_by_other_file, "is not an engine of this version"),
        (_replace_digest, "was built from another specification: its sha256 differs"),
    ],
)
def test_missing_and_damaged_engines_are_not_loaded(
    installed: FakeTensorRT, vit: Bundle, tmp_path: Path, damage: Any, message: str
) -> None:
    if damage is not _not_written:
        (path,) = build(vit, tmp_path, needed_engines(vit))
        damage(path)
    with pytest.raises(EngineError, match=message):
        Session(vit, device="tensorrt", engines=tmp_path)
    assert load_count(installed) == 0
    assert len(runtime.missing_engines(vit, tmp_path)) == 1


def test_engines_of_other_targets_are_not_used(
    installed: FakeTensorRT, vit: Bundle, tmp_path: Path
) -> None:
    (spec,) = needed_engines(vit)
    for change in ({"tensorrt": "tensorrt 10.9.0"}, {"gpu": "Other GPU sm_90"}, {"plugins": None}):
        other = spec.target.model_copy(update=change)
        build(vit, tmp_path, [spec.model_copy(update={"target": other})])
    assert runtime.missing_engines(vit, tmp_path) == [spec.file]
    with pytest.raises(EngineError, match="is not built"):
        Session(vit, device="tensorrt", engines=tmp_path)
    assert load_count(installed) == 0


def test_rejected_engines_are_deleted(installed: FakeTensorRT, vit: Bundle, tmp_path: Path) -> None:
    (spec,) = needed_engines(vit)
    EngineStore(tmp_path, vit).write(spec, b"an engine that this TensorRT cannot read")
    with pytest.raises(EngineError, match=f"{spec.file} could not be loaded: .*magicTag failed"):
        Session(vit, device="tensorrt", engines=tmp_path)
    assert load_count(installed) == 1
    # The rejected engine was deleted, so it is built again.
    assert runtime.missing_engines(vit, tmp_path) == [spec.file]


def test_a_damaged_static_engine_is_ignored(
    installed: FakeTensorRT, vit: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine for all plans runs that plan instead."""
    paths = build(vit, tmp_path, needed_engines(vit, static=True))
    _flip_bit(paths[-1])
    session = Session(vit, device="tensorrt", engines=tmp_path)
    assert load_count(installed) == len(paths) - 1
    (record,) = caplog.records
    assert "ignoring a damaged engine" in record.getMessage()
    assert paths[-1].name in record.getMessage()
    session.close()


def test_a_damaged_bfloat16_engine_is_ignored(
    installed: FakeTensorRT, vit: Bundle, tmp_path: Path
) -> None:
    build(vit, tmp_path, needed_engines(vit))
    (path,) = build(vit, tmp_path, needed_engines(vit, bfloat16=True))
    assert [spec.precision for spec in runtime.select_engines(vit, MODEL, tmp_path)] == ["bf16"]
    _flip_bit(path)
    assert runtime.missing_engines(vit, tmp_path) == []
    assert [spec.precision for spec in runtime.select_engines(vit, MODEL, tmp_path)] == ["fp16"]
    Session(vit, device="tensorrt", engines=tmp_path).close()
    assert load_count(installed) == 1


def test_selected_engines(installed: FakeTensorRT, vit: Bundle, tmp_path: Path) -> None:
    def selected(*, static: bool = True) -> list[tuple[str, bool]]:
        specs = runtime.select_engines(vit, MODEL, tmp_path, static=static)
        return [(spec.precision, spec.plan is not None) for spec in specs]

    float16 = needed_engines(vit, static=True)
    bfloat16 = needed_engines(vit, bfloat16=True, static=True)
    assert selected() == [("fp16", False)]
    build(vit, tmp_path, float16[:2])
    assert selected() == [("fp16", False), ("fp16", True)]
    assert selected(static=False) == [("fp16", False)]
    build(vit, tmp_path, bfloat16[2:3])
    assert selected() == [("fp16", False), ("fp16", True)]
    build(vit, tmp_path, bfloat16[:1])
    assert selected() == [("bf16", False), ("bf16", True)]
    session = Session(vit, device="tensorrt", engines=tmp_path)
    assert installed.api.live["engine"] == 2
    session.close()
    session = Session(vit, device="tensorrt", engines=tmp_path, static=False)
    assert installed.api.live["engine"] == 1
    plan = float16[1].plan
    assert plan is not None
    output = session.run(random_images(vit, 2), plan)
    check(output.logits, random_images(vit, 2), plan)
    session.close()


def test_running_out_of_memory_while_opening(
    installed: FakeTensorRT, vit: Bundle, gpu: FakeRuntime, tmp_path: Path
) -> None:
    paths = build(vit, tmp_path, needed_engines(vit, static=True)[:3])
    session = Session(vit, device="tensorrt", engines=tmp_path)
    blocks = gpu.live["device"]
    session.close()
    for gpu.blocks in range(blocks):
        with pytest.raises((EngineError, CudaError)) as caught:
            Session(vit, device="tensorrt", engines=tmp_path)
        # All memory is free again, even while the exception exists.
        assert not installed.api.live["engine"]
        assert gpu.live["device"] == gpu.live["host"] == 0
        del caught
    # The engines are kept, because they can be loaded later.
    assert all(path.exists() for path in paths)


def test_running_out_of_memory_while_warming(
    installed: FakeTensorRT, vit: Bundle, gpu: FakeRuntime, tmp_path: Path
) -> None:
    build(vit, tmp_path, needed_engines(vit))
    session = Session(vit, device="tensorrt", engines=tmp_path)
    gpu.blocks = gpu.live["device"] + 5
    with pytest.raises(EngineError, match=r"no context could be created: .*OutOfMemory") as caught:
        session.warm([vit.manifest.levels["some"].plan])
    assert not +installed.api.live
    assert gpu.live["device"] == gpu.live["host"] == 0
    with pytest.raises(CudaError, match="closed"):
        session.run(random_images(vit, 1), vit.manifest.levels["some"].plan)
    del caught


def test_one_missing_engine_frees_the_others(
    installed: FakeTensorRT, gpu: FakeRuntime, tmp_path: Path
) -> None:
    exported = bundle("clip", "fp16")
    build(exported, tmp_path, needed_engines(exported)[:1])
    with pytest.raises(EngineError, match=r"text--.* is not built"):
        DualSession(exported, device="tensorrt", engines=tmp_path)
    assert not +installed.api.live
    assert not +gpu.live


class TestMissing:
    """Tests of the reasons why engines cannot run."""

    @pytest.mark.usefixtures("installed")
    def test_nothing_is_missing(self) -> None:
        assert runtime.missing() is None

    def test_missing_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device, "runtime", None)
        assert "cuda-bindings" in str(runtime.missing())
        monkeypatch.setattr(device, "runtime", FakeRuntime(devices=0))
        assert runtime.missing() == "no GPU was found"

    def test_failing_gpu(self, installed: FakeTensorRT, gpu: FakeRuntime) -> None:
        assert installed is not None
        gpu.failing["cudaGetDeviceProperties"] = 1
        assert "cudaGetDeviceProperties: fake" in str(runtime.missing())

    @pytest.mark.usefixtures("gpu")
    def test_missing_tensorrt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(variant, "installed", lambda: ())
        assert runtime.missing() == ("TensorRT is not installed: pip install 'tokenfold[tensorrt]'")

    @pytest.mark.usefixtures("gpu")
    def test_tensorrt_that_cannot_be_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken() -> TensorRTVariant:
            raise TensorRTError("tensorrt cannot be loaded: libnvinfer.so.11 is not there")

        monkeypatch.setattr(variant, "load", broken)
        assert "libnvinfer" in str(runtime.missing())

    def test_missing_plugins(
        self, tensorrt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(variant, "load", lambda: tensorrt.variant)
        monkeypatch.setenv(libraries.VARIABLES["tensorrt"], "none")
        assert "make plugins-tensorrt" in str(runtime.missing())
        monkeypatch.setenv(libraries.VARIABLES["tensorrt"], str(tmp_path / "library.so"))
        assert "which is not a file" in str(runtime.missing())
        (tmp_path / "library.so").write_bytes(b"nothing")
        assert "is not a plugin library" in str(runtime.missing())

    def test_rejected_plugins(
        self, tensorrt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        path = tmp_path / "library.so"
        path.write_bytes(b"a library")
        monkeypatch.setenv(libraries.VARIABLES["tensorrt"], str(path))
        monkeypatch.setattr(variant, "load", lambda: tensorrt.variant)
        monkeypatch.setattr(
            ctypes, "CDLL", lambda _: SimpleNamespace(TokenfoldTensorRtProblem=SimpleNamespace())
        )
        tensorrt.api.libraries = None
        assert "tensorrt 11.9.0 does not accept the plugins in" in str(runtime.missing())
        tensorrt.api.libraries = []
        assert runtime.missing() is None
        assert runtime.missing() is None
        assert tensorrt.api.libraries == [str(path)]

    def test_unsupported_gpu(self, installed: FakeTensorRT) -> None:
        """TensorRT for RTX does not support every architecture."""
        capabilities = SimpleNamespace(__members__={"NONE": 0, "CURRENT": 1, "SM89": 2, "SM120": 3})
        installed.api.ComputeCapability = capabilities
        assert runtime.missing() == (
            "tensorrt 11.9.0 does not build for sm_90; supported: sm_89, sm_120"
        )
        capabilities.__members__["SM90"] = 4
        assert runtime.missing() is None
        assert target.current_target(installed.variant, None).gpu == "sm_90"


@pytest.mark.usefixtures("installed")
def test_the_default_folder_of_engines(
    vit: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENFOLD_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build(vit, tmp_path / "tokenfold" / "engines", needed_engines(vit))
    session = Session(vit, device="tensorrt")
    assert isinstance(session.graph, CudaGraph)
    session.close()
