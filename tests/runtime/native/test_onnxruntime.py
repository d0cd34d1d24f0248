"""Where the compiled ops are looked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenfold.runtime.native import onnxruntime as library

NATIVE = Path(__file__).parents[2] / "native"

needs_library = pytest.mark.skipif(
    library.find() is None, reason="the C++ ops are not built: run `make plugins`"
)


DEVICES: list[tuple[library.Device, str]] = [
    ("cpu", library.VARIABLE),
    ("cuda", library.CUDA_VARIABLE),
]


@pytest.mark.parametrize(("device", "variable"), DEVICES)
def test_the_variable_names_a_file(
    device: library.Device, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ops.so"
    file.touch()
    monkeypatch.setenv(variable, str(file))
    assert library.find(device) == file
    monkeypatch.setenv(variable, str(tmp_path / "other.so"))
    with pytest.raises(FileNotFoundError, match=variable):
        library.find(device)


@pytest.mark.parametrize(("device", "variable"), DEVICES)
def test_none_does_without(
    device: library.Device, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "none")
    assert library.find(device) is None


def test_a_device_does_not_take_the_other_ones_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ops.so"
    file.touch()
    monkeypatch.setenv(library.CUDA_VARIABLE, str(file))
    assert library.find() != file
    monkeypatch.setenv(library.VARIABLE, "none")
    assert library.find("cuda") == file
    assert library.find() is None
    assert library.kernels() is None


@needs_library
def test_the_kernels_name_their_instruction_set() -> None:
    assert library.kernels() in {"baseline", "avx2", "avx512"}


@needs_library
@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_kernels_for_other_processors_pass_the_tests_of_the_ops(isa: str) -> None:
    environment = {**os.environ, "TOKENFOLD_KERNELS": isa}
    code = "from tokenfold.runtime.native import onnxruntime; print(onnxruntime.kernels())"
    named = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    if named.stdout.strip() != isa:
        pytest.skip(f"this processor has no {isa}")
    arguments = [sys.executable, "-m", "pytest", "-q", "-k", "native or threads or magnitude"]
    tests = [NATIVE / name for name in ("test_ops.py", "test_pumer_ops.py")]
    done = subprocess.run([*arguments, *tests], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
