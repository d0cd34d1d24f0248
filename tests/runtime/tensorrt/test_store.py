"""Tests of the engine store: it reads only intact engines that match their specification."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runtime.tensorrt.bundles import bundle
from tokenfold.runtime.tensorrt import store as store_module
from tokenfold.runtime.tensorrt.spec import (
    EngineError,
    EngineSpec,
    engine_specs,
    unsupported_reason,
)
from tokenfold.runtime.tensorrt.store import EngineStore
from tokenfold.runtime.tensorrt.target import BuildTarget

TARGET = BuildTarget(tensorrt="tensorrt 11.4.0", gpu="NVIDIA H200 sm_90", plugins="ab" * 32)
CONTENT = bytes(range(256)) * 50


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path, bundle("vit", "fp16"))


def engine_spec(target: BuildTarget = TARGET) -> EngineSpec:
    return engine_specs(bundle("vit", "fp16"), target)[0]


def test_written_engines_are_read_back(store: EngineStore) -> None:
    with pytest.raises(EngineError, match="is not built"):
        store.read(engine_spec())
    written = store.write(engine_spec(), CONTENT)
    assert written == store.find(engine_spec())
    assert written.bytes == len(CONTENT)
    assert store.read(engine_spec()) == CONTENT
    assert [path.name for path in store.folder.iterdir()] == [written.path.name]


def test_file_names_identify_graph_precision_version_gpu_and_plugins() -> None:
    assert engine_spec().file == (
        "model--fp16--tensorrt_11.4.0--NVIDIA_H200_sm_90--plugins_abababababab.engine"
    )
    bodies = TARGET.model_copy(update={"plugins": None})
    assert "--no_plugins.engine" in engine_spec(bodies).file
    specs = engine_specs(bundle("vit", "fp16"), TARGET, static=True)
    assert len({spec.file for spec in specs}) == len(specs) == 1 + 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tensorrt", "tensorrt 11.5.0"),
        ("gpu", "NVIDIA H100 sm_90"),
        ("plugins", "cd" * 32),
        ("plugins", None),
    ],
)
def test_engines_of_other_targets_are_not_found(
    store: EngineStore, field: str, value: str | None
) -> None:
    store.write(engine_spec(TARGET.model_copy(update={field: value})), CONTENT)
    with pytest.raises(EngineError, match="is not built"):
        store.find(engine_spec())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("revision", 0, "its revision differs"),
        ("sha256", "0" * 64, "its sha256 differs"),
        ("profiles", (), "its profiles differs"),
    ],
)
def test_an_engine_of_the_same_name_with_another_specification(
    store: EngineStore, field: str, value: object, message: str
) -> None:
    other = engine_spec().model_copy(update={field: value})
    assert other.file == engine_spec().file
    store.write(other, CONTENT)
    with pytest.raises(EngineError, match=f"was built from another specification: {message}"):
        store.read(engine_spec())
    store.write(engine_spec(), CONTENT)
    assert store.read(engine_spec()) == CONTENT


def test_a_renamed_engine_is_rejected(store: EngineStore) -> None:
    """A user might copy an engine to another machine, and rename it to the expected name."""
    foreign = store.write(
        engine_spec(TARGET.model_copy(update={"gpu": "NVIDIA L4 sm_89"})), CONTENT
    )
    foreign.path.rename(store.folder / engine_spec().file)
    with pytest.raises(EngineError, match="built from another specification: its target differs"):
        store.find(engine_spec())


def damage(content: bytes, kind: str) -> bytes:
    """Return the content of an engine file after damage of a kind."""
    header, _, engine = content.partition(b"\n")
    return {
        "shorter": content[:-1],
        "longer": content + b"0",
        "changed": header + b"\n" + engine[:-1] + b"x",
        "empty": b"",
        "header alone": header,
        "other": b"\x7fELF" + engine,
        "no end": b"{" * (2 << 20),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["shorter", "longer", "changed", "empty", "header alone", "other", "no end"]
)
def test_a_damaged_engine_is_not_read(store: EngineStore, kind: str) -> None:
    path = store.write(engine_spec(), CONTENT).path
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(EngineError, match=r"is damaged|is not an engine of this version"):
        store.read(engine_spec())


def test_only_regular_files_are_read(store: EngineStore) -> None:
    path = store.folder / engine_spec().file
    path.mkdir(parents=True)
    with pytest.raises(EngineError, match="is not a regular file"):
        store.read(engine_spec())
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(EngineError, match="is not a regular file"):
        store.find(engine_spec())


def test_an_engine_replaced_while_it_is_read(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header and content come from the same file."""
    store.write(engine_spec(), CONTENT)
    parse = store_module._Header.model_validate_json

    def parse_after_replacing(line: bytes) -> store_module._Header:
        monkeypatch.undo()
        store.write(engine_spec(), CONTENT[::-1] * 2)
        return parse(line)

    monkeypatch.setattr(store_module._Header, "model_validate_json", parse_after_replacing)
    assert store.read(engine_spec()) == CONTENT
    assert store.read(engine_spec()) == CONTENT[::-1] * 2


def test_a_failed_write_keeps_the_existing_engine(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(engine_spec(), CONTENT)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write(engine_spec(), CONTENT * 2)
    assert store.read(engine_spec()) == CONTENT
    assert len(list(store.folder.iterdir())) == 1


WRITER = """
import sys
from pathlib import Path
from tokenfold.runtime.tensorrt.store import replace
turn = 0
while True:
    turn += 1
    replace(Path(sys.argv[1]), bytes([turn % 256]) * (1 << 22))
    print(turn, flush=True)
"""


def test_a_killed_writer_leaves_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "engines" / "some.engine"
    for pause in (0.0, 0.003, 0.006, 0.01, 0.015):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(pause)
            writer.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert len(content) == 1 << 22
        assert len(set(content)) == 1


def test_bundles_have_separate_folders(tmp_path: Path) -> None:
    first, second = (EngineStore(tmp_path, bundle(kind, "fp16")) for kind in ("vit", "pitome"))
    assert first.folder != second.folder
    assert first.folder.parent == tmp_path


def test_unsupported_reason() -> None:
    assert unsupported_reason(bundle("vit", "fp16")) is None
    assert unsupported_reason(bundle("vit", "fp16"), "bf16") is None
    assert unsupported_reason(bundle("vit", "fp32")) is None
    assert "bf16 engines need an fp16 bundle" in str(
        unsupported_reason(bundle("vit", "fp32"), "bf16")
    )
    assert "int8 bundle" in str(unsupported_reason(bundle("vit", "int8")))
    with pytest.raises(EngineError, match="int8 bundle"):
        engine_specs(bundle("vit", "int8"), TARGET)


def test_one_engine_per_graph_and_static_level() -> None:
    exported = bundle("vilt", "fp16")
    assert [spec.graph for spec in engine_specs(exported, TARGET)] == ["vision.onnx", "joint.onnx"]
    static = engine_specs(exported, TARGET, static=True)
    plans = [spec.plan for spec in static if spec.graph == "joint.onnx"]
    assert plans == [None, *(level.plan for level in exported.manifest.levels.values())]
    assert [spec.plan for spec in static if spec.graph == "vision.onnx"] == [None]
    assert all(not profile.plan for spec in static if spec.plan for profile in spec.profiles)
    assert {spec.precision for spec in engine_specs(exported, TARGET, precision="bf16")} == {"bf16"}
