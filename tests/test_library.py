"""Where the compiled ops are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.plugins.onnxruntime import library


def test_the_variable_names_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "ops.so"
    file.touch()
    monkeypatch.setenv(library.VARIABLE, str(file))
    assert library.find() == file
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "other.so"))
    with pytest.raises(FileNotFoundError, match=library.VARIABLE):
        library.find()


def test_none_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "none")
    assert library.find() is None
    assert library.kernels() is None


@pytest.mark.skipif(library.find() is None, reason="the C++ ops are not built: run `make plugins`")
def test_the_kernels_name_their_instruction_set() -> None:
    assert library.kernels() in {"baseline", "avx2", "avx512"}
