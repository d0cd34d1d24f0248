"""Atomic writing of bundles, through a temporary folder that is renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenfold.bundle.bundle import BundleError, read_document, sha256
from tokenfold.bundle.document import Document
from tokenfold.bundle.manifest import MANIFEST, Manifest, StoredFile
from tokenfold.bundle.profile import PROFILE, Profile


def stored_files(folder: Path) -> dict[str, StoredFile]:
    """Return checksums and lengths of all files below a folder except the manifest."""
    return {
        path.relative_to(folder).as_posix(): StoredFile(
            sha256=sha256(path), bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest; inside `writing`, this is the last file to write."""
    write_document(folder / MANIFEST, manifest)


def write_profile(folder: Path, profile: Profile) -> None:
    """Add a profile to a bundle and list it in the manifest."""
    manifest = read_document(folder / MANIFEST, Manifest)
    with writing(folder) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        write_document(copy / PROFILE, profile)
        write_manifest(copy, manifest.model_copy(update={"files": stored_files(copy)}))


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that replaces `out` at the end of the block.

    When the block fails or the process is killed, `out` stays unchanged.

    Raises:
        BundleError: `out` exists and is neither a bundle nor an empty folder.
    """
    out = out.resolve()
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if out.exists():
            _exchange(temporary, out)
        else:
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(out: Path) -> None:
    """Check that a bundle may be written to `out`; raise BundleError otherwise.

    Files and folders that are no bundles are not replaced; an empty folder is.
    """
    if not out.exists() or (out / MANIFEST).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise BundleError(
            f"{out} exists and is not a bundle, so it is not replaced; choose another folder"
        )


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders, in one step on systems that support it."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_fdcwd, rename_exchange = -100, 2
    if renameat2 is not None and not renameat2(
        at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(old), rename_exchange
    ):
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.old.", dir=old.parent)) / old.name
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def write_document(path: Path, document: Document) -> None:
    """Write a manifest or profile as JSON."""
    path.write_text(document.model_dump_json(indent=2) + "\n")
