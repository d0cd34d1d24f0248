"""Writing a bundle: whole or not at all, for it is a temporary folder until it is renamed.

No torch in here.
"""

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
    """Checksums of every file below a folder but the manifest."""
    return {
        path.relative_to(folder).as_posix(): StoredFile(
            sha256=sha256(path), bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest; inside `writing`, last of all files."""
    write_document(folder / MANIFEST, manifest)


def write_profile(folder: Path, profile: Profile) -> None:
    """Put a profile into a bundle and note it in the manifest."""
    manifest = read_document(folder / MANIFEST, Manifest)
    with writing(folder) as renewed:
        shutil.copytree(folder, renewed, dirs_exist_ok=True)
        write_document(renewed / PROFILE, profile)
        write_manifest(renewed, manifest.model_copy(update={"files": stored_files(renewed)}))


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well.

    When the block fails, or the process is killed, `out` is as it was.

    Raises:
        BundleError: `out` is there, and is neither a bundle nor an empty folder.
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
    """Whether a bundle may be written to `out`.

    Raises:
        BundleError: something else is there, which is not ours to delete.
    """
    if not out.exists() or (out / MANIFEST).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise BundleError(f"{out} is there and is no bundle; it is left alone")


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders; in one step where the system can."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2 is not None and not renameat2(
        here, os.fsencode(new), here, os.fsencode(old), exchange
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
