"""Classification of LanceDB's errors, with texts copied from LanceDB."""

from __future__ import annotations

import pytest

from tokenfold.service.errors import StorageFailed, StorageFull
from tokenfold.service.galleries import failures

ENDING = ", /root/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/lance-file-13.0.0/src/x.rs:1"


@pytest.mark.parametrize(
    "text",
    [
        "lance error: LanceError(IO): No space left on device (os error 28)",
        "lance error: LanceError(IO): Generic LocalFileSystem error: Unable to copy data to file: "
        "No space left on device (os error 28)",
        "lance error: LanceError(IO): Disk quota exceeded (os error 122)",
        "lance error: LanceError(IO): File too large (os error 27)",
    ],
)
def test_a_full_disk(text: str) -> None:
    error = failures.storage_error(RuntimeError(text + ENDING), "adding to gallery holiday")
    assert isinstance(error, StorageFull)
    assert "adding to gallery holiday failed" in error.detail
    assert ".cargo" not in error.detail


def test_other_errors_are_storage_failures() -> None:
    text = "lance error: LanceError(IO): Permission denied (os error 13)"
    error = failures.storage_error(RuntimeError(text + ENDING), "reading gallery holiday")
    assert isinstance(error, StorageFailed)
    assert error.detail == "Reading gallery holiday failed; see the server's log."


def test_conflicts_and_missing_tables() -> None:
    conflict = RuntimeError(
        "lance error: Retryable commit conflict for version 7: This Update" + ENDING
    )
    existing = ValueError("Table '1-a' already exists")
    missing = ValueError("Table '1-a' was not found")
    dropped = RuntimeError("lance error: Not found: data/1-a.lance/_versions" + ENDING)
    errors = (conflict, existing, missing, dropped)
    assert [failures.is_conflict(error) for error in errors] == [True, False, False, False]
    assert [failures.is_missing(error) for error in errors] == [False, False, True, True]
    assert not any(failures.is_full(error) for error in errors)
