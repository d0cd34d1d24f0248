"""The kinds of backends that there are."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

import pytest

from tests.service.standin import bundle
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.manifest import Precision
from tokenfold.runtime.cuda import device
from tokenfold.runtime.tensorrt import process, runtime
from tokenfold.service.scheduling.backends.kinds import CUDA, CpuKind, TensorRTKind, all_kinds
from tokenfold.service.settings import Settings


def test_the_setting_names_all_of_them() -> None:
    named = get_args(Settings.model_fields["backend"].annotation)
    assert named == ("auto", *(kind.name for kind in all_kinds(Path("engines"))))


def test_the_cpu_is_always_there_and_last(tmp_path: Path) -> None:
    found = Bundle.open(bundle(tmp_path / "a"))
    cpu = all_kinds(tmp_path)[-1]
    assert isinstance(cpu, CpuKind)
    assert cpu.missing() is None
    assert cpu.unfit(found) is None
    assert cpu.used_memory() is None
    assert cpu.load(found).max_concurrent_runs is None
    assert cpu.unprepared(found) == ()


@pytest.mark.parametrize("precision", get_args(Precision))
def test_what_a_gpu_runs(precision: Precision, tmp_path: Path) -> None:
    found = Bundle.open(bundle(tmp_path / "a"))
    found.manifest = found.manifest.model_copy(update={"precision": precision})
    for kind in (TensorRTKind(tmp_path), CUDA):
        assert (kind.unfit(found) is None) == (precision != "int8")


def test_memory_of_a_gpu_that_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is asked while models are loaded, which then go to the next backend."""

    def broken() -> NoReturn:
        raise device.CudaError("cudaMemGetInfo: an illegal memory access was encountered")

    monkeypatch.setattr(device, "memory", broken)
    assert CUDA.used_memory() is None
    assert TensorRTKind(tmp_path).used_memory() is None


@pytest.mark.skipif(CUDA.missing() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_why(tmp_path: Path) -> None:
    for kind in (TensorRTKind(tmp_path), CUDA):
        why = kind.missing()
        assert why
        assert not why.endswith(".")


def test_engines_are_looked_for_in_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Bundle.open(bundle(tmp_path / "a"))

    def unbuilt(asked: Bundle, folder: Path) -> list[str]:
        assert (asked, folder) == (found, tmp_path / "engines")
        return ["one.engine"]

    monkeypatch.setattr(runtime, "missing_engines", unbuilt)
    assert TensorRTKind(tmp_path / "engines").unprepared(found) == ["one.engine"]


def test_engines_are_built_by_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(process, "build", lambda command, *_: asked.append(command))
    found = Bundle.open(bundle(tmp_path / "a"))
    folder = tmp_path / "engines"
    TensorRTKind(folder).prepare(found, lambda _: None, threading.Event())
    (command,) = asked
    assert command == process.command_line(tmp_path / "a", folder)


def test_the_command_knows_what_it_is_asked(tmp_path: Path) -> None:
    found = Bundle.open(bundle(tmp_path / "a"))
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(process.BuildError, match=r"manifest\.json") as caught:
        TensorRTKind(tmp_path).prepare(found, lambda _: None, threading.Event())
    assert len(str(caught.value).splitlines()) == 1
