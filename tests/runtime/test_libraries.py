"""The compiled libraries: where they are looked for, and what happens where one does not load."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from tests.native.op_graphs import needs_library
from tokenfold.runtime import libraries
from tokenfold.runtime.libraries import Library, NativeOps, find, fingerprint, native_ops

TESTS = Path(__file__).parents[1]
CPU = libraries.VARIABLES["cpu"]

each_library = pytest.mark.parametrize("library", get_args(Library))


@each_library
def test_a_variable_names_a_file(
    library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ops.so"
    file.touch()
    variable = libraries.VARIABLES[library]
    monkeypatch.setenv(variable, str(file))
    assert find(library) == file
    monkeypatch.setenv(variable, str(tmp_path / "other.so"))
    with pytest.raises(FileNotFoundError, match=variable):
        find(library)


@each_library
def test_the_value_none_disables_a_library(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(libraries.VARIABLES[library], "none")
    assert find(library) is None


@each_library
def test_the_built_library_is_the_default(
    library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(libraries.VARIABLES[library], raising=False)
    monkeypatch.setattr(libraries, "FOLDER", tmp_path)
    assert find(library) is None
    built = tmp_path / libraries.FILES[library]
    built.touch()
    assert find(library) == built


def test_each_device_has_its_own_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "ops.so"
    file.touch()
    monkeypatch.setenv(libraries.VARIABLES["cuda"], str(file))
    assert find() != file
    monkeypatch.setenv(CPU, "none")
    assert find("cuda") == file
    assert find() is None


def test_different_builds_have_different_fingerprints(tmp_path: Path) -> None:
    first, second = tmp_path / "one.so", tmp_path / "other.so"
    first.write_bytes(b"\x7fELF one")
    second.write_bytes(b"\x7fELF two")
    assert fingerprint(first) == hashlib.sha256(b"\x7fELF one").hexdigest()
    assert fingerprint(first) != fingerprint(second)
    second.write_bytes(first.read_bytes())
    assert fingerprint(first) == fingerprint(second)


def test_a_missing_file_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "plugins.so")


class TestNativeOps:
    """Availability of the compiled ops."""

    @needs_library
    def test_a_library_that_loads_has_no_reason(self) -> None:
        path, kernels, reason = native_ops()
        assert path == find()
        assert kernels in {"baseline", "avx2", "avx512"}
        assert reason is None

    def test_none_is_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(CPU, "none")
        assert native_ops() == NativeOps(reason=f"{CPU} is none")

    def test_a_missing_library_names_the_command_that_builds_it(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv(CPU, raising=False)
        monkeypatch.setattr(libraries, "FOLDER", tmp_path)
        path, kernels, reason = native_ops()
        assert (path, kernels) == (None, None)
        assert reason is not None
        assert "make plugins" in reason
        assert str(tmp_path) in reason

    @pytest.mark.parametrize("contents", [b"", b"not a library", b"\x7fELF" + bytes(60)])
    def test_a_damaged_library_is_logged_once(
        self,
        contents: bytes,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
    ) -> None:
        file = tmp_path / "ops.so"
        file.write_bytes(contents)
        monkeypatch.setenv(CPU, str(file))
        path, kernels, reason = native_ops()
        assert (path, kernels) == (None, None)
        assert reason is not None
        assert reason.startswith("ops.so cannot be loaded: ")
        assert native_ops().reason == reason
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "portable ops run instead" in record.getMessage()

    def test_a_library_without_ops_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        import _ctypes

        file = tmp_path / "ops.so"
        shutil.copy(_ctypes.__file__, file)
        monkeypatch.setenv(CPU, str(file))
        assert "TokenfoldKernels" in str(native_ops().reason)


@needs_library
@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_kernels_for_other_processors_pass_the_tests_of_the_ops(isa: str) -> None:
    environment = {**os.environ, "TOKENFOLD_KERNELS": isa}
    code = "from tokenfold.runtime import libraries; print(libraries.native_ops().kernels)"
    named = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    if named.stdout.strip() != isa:
        pytest.skip(f"this processor has no {isa}")
    arguments = [sys.executable, "-m", "pytest", "-q", "-k", "native or threads or magnitude"]
    tests = [TESTS / "native" / name for name in ("test_ops.py", "test_pumer_ops.py")]
    done = subprocess.run([*arguments, *tests], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
