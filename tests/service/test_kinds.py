"""The kinds of backends that there are."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, get_args

import pytest

from export.bundle import Bundle
from export.cuda import device
from export.manifest import Precision
from service.backends.kinds import CPU, CUDA, KINDS
from service.settings import Settings
from tests.service.standin import bundle


def test_the_setting_names_all_of_them() -> None:
    named = get_args(Settings.model_fields["backend"].annotation)
    assert named == ("auto", *(kind.name for kind in KINDS))


def test_the_cpu_is_always_there_and_last(tmp_path: Path) -> None:
    found = Bundle.open(bundle(tmp_path / "a"))
    assert KINDS[-1] is CPU
    assert CPU.missing() is None
    assert CPU.unfit(found) is None
    assert CPU.used() is None
    assert CPU.load(found).at_once is None


@pytest.mark.parametrize("precision", get_args(Precision))
def test_what_a_gpu_runs(precision: Precision, tmp_path: Path) -> None:
    found = Bundle.open(bundle(tmp_path / "a"))
    found.manifest = found.manifest.model_copy(update={"precision": precision})
    assert (CUDA.unfit(found) is None) == (precision != "int8")


def test_memory_of_a_gpu_that_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked while models are loaded, which then go to the next backend."""

    def broken() -> NoReturn:
        raise device.CudaError("cudaMemGetInfo: an illegal memory access was encountered")

    monkeypatch.setattr(device, "memory", broken)
    assert CUDA.used() is None


@pytest.mark.skipif(CUDA.missing() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_why() -> None:
    why = CUDA.missing()
    assert why
    assert not why.endswith(".")
