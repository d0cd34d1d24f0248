"""Engines in a folder: what is loaded is what was built, for just this."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runtime.tensorrt.bundles import bundle
from tokenfold.runtime.tensorrt import engines as keeping
from tokenfold.runtime.tensorrt.engines import Engines
from tokenfold.runtime.tensorrt.origin import EngineError, Origin, Target, origins, unfit

TARGET = Target(tensorrt="tensorrt 11.4.0", gpu="NVIDIA H200 sm_90", plugins="ab" * 32)
CONTENT = bytes(range(256)) * 50


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path, bundle("vit", "fp16"))


def origin(target: Target = TARGET) -> Origin:
    return origins(bundle("vit", "fp16"), target)[0]


def test_what_is_written_is_read(engines: Engines) -> None:
    with pytest.raises(EngineError, match="is not built"):
        engines.read(origin())
    written = engines.write(origin(), CONTENT)
    assert written == engines.find(origin())
    assert written.bytes == len(CONTENT)
    assert engines.read(origin()) == CONTENT
    assert [path.name for path in engines.folder.iterdir()] == [written.path.name]


def test_names_say_graph_precision_version_gpu_and_plugins() -> None:
    assert origin().file == (
        "model--fp16--tensorrt_11.4.0--NVIDIA_H200_sm_90--plugins_abababababab.engine"
    )
    bodies = TARGET.model_copy(update={"plugins": None})
    assert "--no_plugins.engine" in origin(bodies).file
    every = origins(bundle("vit", "fp16"), TARGET, static=True)
    assert len({one.file for one in every}) == len(every) == 1 + 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tensorrt", "tensorrt 11.5.0"),
        ("gpu", "NVIDIA H100 sm_90"),
        ("plugins", "cd" * 32),
        ("plugins", None),
    ],
)
def test_a_foreign_engine_is_not_there(engines: Engines, field: str, value: str | None) -> None:
    engines.write(origin(TARGET.model_copy(update={field: value})), CONTENT)
    with pytest.raises(EngineError, match="is not built"):
        engines.find(origin())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("revision", 0, "its revision differs"),
        ("sha256", "0" * 64, "its sha256 differs"),
        ("profiles", (), "its profiles differs"),
    ],
)
def test_an_engine_of_its_name_that_was_built_from_something_else(
    engines: Engines, field: str, value: object, said: str
) -> None:
    other = origin().model_copy(update={field: value})
    assert other.file == origin().file
    engines.write(other, CONTENT)
    with pytest.raises(EngineError, match=f"was built from something else: {said}"):
        engines.read(origin())
    engines.write(origin(), CONTENT)
    assert engines.read(origin()) == CONTENT


def test_one_under_anothers_name(engines: Engines) -> None:
    """As whoever copies an engine to another machine, and renames it to fit, would have it."""
    foreign = engines.write(origin(TARGET.model_copy(update={"gpu": "NVIDIA L4 sm_89"})), CONTENT)
    foreign.path.rename(engines.folder / origin().file)
    with pytest.raises(EngineError, match="built from something else: its target differs"):
        engines.find(origin())


def damaged(content: bytes, how: str) -> bytes:
    header, _, engine = content.partition(b"\n")
    return {
        "shorter": content[:-1],
        "longer": content + b"0",
        "changed": header + b"\n" + engine[:-1] + b"x",
        "empty": b"",
        "header alone": header,
        "other": b"\x7fELF" + engine,
        "no end": b"{" * (2 << 20),
    }[how]


@pytest.mark.parametrize(
    "how", ["shorter", "longer", "changed", "empty", "header alone", "other", "no end"]
)
def test_a_damaged_engine_is_not_read(engines: Engines, how: str) -> None:
    path = engines.write(origin(), CONTENT).path
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(EngineError, match=r"is damaged|is no engine of this version"):
        engines.read(origin())


def test_what_is_no_file_is_not_read(engines: Engines) -> None:
    path = engines.folder / origin().file
    path.mkdir(parents=True)
    with pytest.raises(EngineError, match="is no file"):
        engines.read(origin())
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(EngineError, match="is no file"):
        engines.find(origin())


def test_an_engine_that_is_replaced_while_it_is_read(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened is read to its end, header and engine of one file."""
    engines.write(origin(), CONTENT)
    parse = keeping._Header.model_validate_json

    def replaced(line: bytes) -> keeping._Header:
        monkeypatch.undo()
        engines.write(origin(), CONTENT[::-1] * 2)
        return parse(line)

    monkeypatch.setattr(keeping._Header, "model_validate_json", replaced)
    assert engines.read(origin()) == CONTENT
    assert engines.read(origin()) == CONTENT[::-1] * 2


def test_a_failed_write_leaves_what_was_there(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.write(origin(), CONTENT)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        engines.write(origin(), CONTENT * 2)
    assert engines.read(origin()) == CONTENT
    assert len(list(engines.folder.iterdir())) == 1


WRITER = """
import sys
from pathlib import Path
from tokenfold.runtime.tensorrt.engines import replace
turn = 0
while True:
    turn += 1
    replace(Path(sys.argv[1]), bytes([turn % 256]) * (1 << 22))
    print(turn, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
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


def test_engines_of_the_same_name_from_other_bundles_are_apart(tmp_path: Path) -> None:
    one, other = (Engines(tmp_path, bundle(kind, "fp16")) for kind in ("vit", "pitome"))
    assert one.folder != other.folder
    assert one.folder.parent == tmp_path


def test_which_bundles_it_is_for() -> None:
    assert unfit(bundle("vit", "fp16")) is None
    assert unfit(bundle("vit", "fp16"), "bf16") is None
    assert unfit(bundle("vit", "fp32")) is None
    assert "bfloat16 is made of a float16 bundle" in str(unfit(bundle("vit", "fp32"), "bf16"))
    assert "int8 bundle" in str(unfit(bundle("vit", "int8")))
    with pytest.raises(EngineError, match="int8 bundle"):
        origins(bundle("vit", "int8"), TARGET)


def test_engines_of_each_graph_and_level() -> None:
    made = bundle("vilt", "fp16")
    assert [one.graph for one in origins(made, TARGET)] == ["vision.onnx", "joint.onnx"]
    static = origins(made, TARGET, static=True)
    plans = [one.plan for one in static if one.graph == "joint.onnx"]
    assert plans == [None, *(level.plan for level in made.manifest.levels.values())]
    assert [one.plan for one in static if one.graph == "vision.onnx"] == [None]
    assert all(not profile.plan for one in static if one.plan for profile in one.profiles)
    assert {one.precision for one in origins(made, TARGET, precision="bf16")} == {"bf16"}
