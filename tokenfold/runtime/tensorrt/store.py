"""Store of engine files, which are checked before TensorRT loads them.

An engine is a program for one GPU, one TensorRT version and one plugin library. TensorRT checks
only part of that, and only after it has been given a file with any content; a file that is wrong
enough ends the process. So a file starts with one line of JSON, which holds the engine's
specification and checksum; the engine follows. A file is written under a temporary name and then
renamed, so it is never partially written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.document import Document
from tokenfold.runtime.tensorrt.spec import EngineError, EngineSpec

VARIABLE = "TOKENFOLD_ENGINES"
"""Environment variable with the folder of engines; see `engines_folder`."""

_MAX_HEADER_BYTES = 1 << 20


def engines_folder() -> Path:
    """Return the default folder for the engines of all bundles.

    It is the folder in `VARIABLE`, or otherwise a folder in the user's cache directory.

    Raises:
        RuntimeError: there is no home directory.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        return Path(folder).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says to ignore a relative path.
    root = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    return root / "tokenfold" / "engines"


class _Header(Document):
    """The first line of an engine file."""

    spec: EngineSpec
    sha256: str
    bytes: int


class StoredEngine(NamedTuple):
    """An engine file.

    Attributes:
        bytes: size of the engine without the header.
    """

    path: Path
    bytes: int


class EngineStore:
    """The engine files of one bundle, in a separate folder."""

    def __init__(self, root: Path, bundle: Bundle) -> None:
        """Set the folder, without creating it.

        Args:
            root: folder of the engines of all bundles.
        """
        self.folder = root / f"{bundle.manifest.name}-{bundle.manifest.fingerprint[:12]}"

    def find(self, spec: EngineSpec) -> StoredEngine:
        """Find the engine that was built from exactly this specification.

        Only the header and the file's length are checked, not the content.

        Raises:
            EngineError: there is no such engine; the message gives the reason.
        """
        with self._open(spec) as (path, header, _):
            return StoredEngine(path, header.bytes)

    def verify(self, spec: EngineSpec) -> StoredEngine:
        """Find an engine, and check its content too.

        Raises:
            EngineError: see `find`; or the content does not match the checksum.
        """
        with self._open(spec) as (path, header, file):
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _check_digest(path, header, digest)
        return StoredEngine(path, header.bytes)

    def read(self, spec: EngineSpec) -> bytes:
        """Read an engine, and check its content.

        Raises:
            EngineError: see `verify`.
        """
        with self._open(spec) as (path, header, file):
            content = file.read()
        _check_digest(path, header, hashlib.sha256(content).hexdigest())
        return content

    def check_writable(self) -> None:
        """Check that engines can be written, before a build of minutes; raise OSError otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder):
            pass

    def discard(self, spec: EngineSpec) -> None:
        """Delete an engine that TensorRT rejects although its checksum is right."""
        with contextlib.suppress(OSError):
            (self.folder / spec.file).unlink()

    def write(self, spec: EngineSpec, content: bytes) -> StoredEngine:
        """Write an engine, replacing a file of the same name.

        Raises:
            OSError: the file cannot be written; an existing file is left as it was.
        """
        digest = hashlib.sha256(content).hexdigest()
        header = _Header(spec=spec, sha256=digest, bytes=len(content))
        path = self.folder / spec.file
        replace(path, header.model_dump_json().encode() + b"\n" + content)
        return StoredEngine(path, len(content))

    @contextlib.contextmanager
    def _open(self, spec: EngineSpec) -> Iterator[tuple[Path, _Header, BufferedReader]]:
        """Open an engine file, check its header, and stop at the start of the content."""
        path = self.folder / spec.file
        try:
            # Opening anything but a regular file might block forever.
            if path.exists() and not path.is_file():
                raise EngineError(f"{path} is not a regular file")
            with path.open("rb") as file:
                yield path, _read_header(path, file, spec), file
        except FileNotFoundError as error:
            raise EngineError(f"{path} is not built") from error
        except OSError as error:
            raise EngineError(f"{path} cannot be read: {error}") from error


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically, replacing an existing one.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o644)
        Path(draft).rename(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _read_header(path: Path, file: BufferedReader, spec: EngineSpec) -> _Header:
    """Read and check the header of an engine file.

    Raises:
        EngineError: the file holds another engine, or is incomplete.
    """
    line = file.readline(_MAX_HEADER_BYTES)
    try:
        header = _Header.model_validate_json(line)
    except ValidationError as error:
        raise EngineError(f"{path} is not an engine of this version of Tokenfold") from error
    if header.spec != spec:
        raise EngineError(
            f"{path} was built from another specification: {_difference(header.spec, spec)}"
        )
    size, expected_size = os.fstat(file.fileno()).st_size, len(line) + header.bytes
    if size != expected_size:
        raise EngineError(f"{path} is damaged: it has {size} bytes instead of {expected_size}")
    return header


def _check_digest(path: Path, header: _Header, digest: str) -> None:
    if digest != header.sha256:
        raise EngineError(f"{path} is damaged: its sha256 differs")


def _difference(spec: EngineSpec, expected: EngineSpec) -> str:
    """Name the differing fields, for an error message."""
    values, expected_values = spec.model_dump(), expected.model_dump()
    names = [name for name in values if values[name] != expected_values[name]]
    return f"its {', '.join(names)} differ" if len(names) > 1 else f"its {names[0]} differs"
