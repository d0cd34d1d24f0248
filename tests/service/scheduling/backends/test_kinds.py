"""Tests of the kinds of backends."""

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


def test_the_backend_setting_names_every_kind() -> None:
    names = get_args(Settings.model_fields["backend"].annotation)
    assert names == ("auto", *(kind.name for kind in all_kinds(Path("engines"))))


def test_the_cpu_is_always_available_and_comes_last(tmp_path: Path) -> None:
    opened = Bundle.open(bundle(tmp_path / "a"))
    cpu = all_kinds(tmp_path)[-1]
    assert isinstance(cpu, CpuKind)
    assert cpu.missing() is None
    assert cpu.unfit(opened) is None
    assert cpu.used_memory() is None
    assert cpu.load(opened).max_concurrent_runs is None
    assert cpu.unprepared(opened) == ()


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_gpu_runs_every_precision_but_int8(precision: Precision, tmp_path: Path) -> None:
    opened = Bundle.open(bundle(tmp_path / "a"))
    opened.manifest = opened.manifest.model_copy(update={"precision": precision})
    for kind in (TensorRTKind(tmp_path), CUDA):
        assert (kind.unfit(opened) is None) == (precision != "int8")


def test_the_memory_of_a_failed_gpu_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A failed GPU must not keep models from loading on the next backend."""

    def broken() -> NoReturn:
        raise device.CudaError("cudaMemGetInfo: an illegal memory access was encountered")

    monkeypatch.setattr(device, "memory", broken)
    assert CUDA.used_memory() is None
    assert TensorRTKind(tmp_path).used_memory() is None


@pytest.mark.skipif(CUDA.missing() is None, reason="there is a GPU")
def test_without_a_gpu_the_reason_is_given(tmp_path: Path) -> None:
    for kind in (TensorRTKind(tmp_path), CUDA):
        reason = kind.missing()
        assert reason
        assert not reason.endswith(".")


def test_missing_engines_are_looked_up_in_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = Bundle.open(bundle(tmp_path / "a"))

    def unbuilt(requested: Bundle, folder: Path) -> list[str]:
        assert (requested, folder) == (opened, tmp_path / "engines")
        return ["one.engine"]

    monkeypatch.setattr(runtime, "missing_engines", unbuilt)
    assert TensorRTKind(tmp_path / "engines").unprepared(opened) == ["one.engine"]


def test_engines_are_built_by_a_separate_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(process, "build", lambda command, *_: commands.append(command))
    opened = Bundle.open(bundle(tmp_path / "a"))
    folder = tmp_path / "engines"
    TensorRTKind(folder).prepare(opened, lambda _: None, threading.Event())
    (command,) = commands
    assert command == process.command_line(tmp_path / "a", folder)


def test_the_build_process_reports_a_missing_manifest(tmp_path: Path) -> None:
    opened = Bundle.open(bundle(tmp_path / "a"))
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(process.BuildError, match=r"manifest\.json") as caught:
        TensorRTKind(tmp_path).prepare(opened, lambda _: None, threading.Event())
    assert len(str(caught.value).splitlines()) == 1
