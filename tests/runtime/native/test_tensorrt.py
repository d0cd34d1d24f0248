"""Where the plugins for TensorRT are looked for, and what tells two builds of them apart."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tokenfold.runtime.native import tensorrt as library


def test_the_variable_names_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "plugins.so"
    file.touch()
    monkeypatch.setenv(library.VARIABLE, str(file))
    assert library.find() == file
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "other.so"))
    with pytest.raises(FileNotFoundError, match=library.VARIABLE):
        library.find()


def test_none_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "none")
    assert library.find() is None


def test_what_make_built_is_taken_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    assert library.find() is None
    built = tmp_path / "libtokenfold_tensorrt.so"
    built.touch()
    assert library.find() == built


def test_builds_that_differ_have_other_fingerprints(tmp_path: Path) -> None:
    one, other = tmp_path / "one.so", tmp_path / "other.so"
    one.write_bytes(b"\x7fELF one")
    other.write_bytes(b"\x7fELF two")
    assert library.fingerprint(one) == hashlib.sha256(b"\x7fELF one").hexdigest()
    assert library.fingerprint(one) != library.fingerprint(other)
    other.write_bytes(one.read_bytes())
    assert library.fingerprint(one) == library.fingerprint(other)


def test_no_file_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        library.fingerprint(tmp_path / "plugins.so")
