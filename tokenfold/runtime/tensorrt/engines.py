"""Engines in a folder, each with a word of what it was built from, which is held against what is
wanted before it is loaded.

An engine is a program for one GPU, one TensorRT and one library of plugins: TensorRT checks some of
that itself, after it has been given a file that may hold anything, and ends the process if it is
wrong enough. So a file is: a line of JSON, which says what the engine is and its checksum, and the
engine. It is written beside its place and renamed, whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydantic import ValidationError

from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.document import Document
from tokenfold.runtime.tensorrt.origin import EngineError, Origin

VARIABLE = "TOKENFOLD_ENGINES"
"""Names the folder of engines; see `folder`."""

_LONGEST_HEADER = 1 << 20


def folder() -> Path:
    """Where the engines of all bundles are kept, unless an option names another folder.

    That is what the environment names, or a folder among what a user can do without.

    Raises:
        RuntimeError: there is no home directory.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, says the XDG base directory specification.
    root = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return root / "tokenfold" / "engines"


class _Header(Document):
    """The first line of an engine's file."""

    origin: Origin
    sha256: str
    bytes: int


class Built(NamedTuple):
    """An engine that is there.

    Attributes:
        bytes: of the engine, without its header.
    """

    path: Path
    bytes: int


class Engines:
    """The engines of one bundle, in a folder of their own."""

    def __init__(self, root: Path, bundle: Bundle) -> None:
        """Args:
        root: of the engines of all bundles.
        """
        self.folder = root / f"{bundle.manifest.name}-{bundle.manifest.fingerprint[:12]}"

    def find(self, origin: Origin) -> Built:
        """An engine that was built from just this. Its content is not looked at.

        Raises:
            EngineError: there is none; the message says what is there instead.
        """
        path = self.folder / origin.file
        with _opened(path) as file:
            return Built(path, _header(path, file, origin).bytes)

    def read(self, origin: Origin) -> bytes:
        """An engine, for TensorRT to load.

        Raises:
            EngineError: see `find`, or it is not what was written.
        """
        path = self.folder / origin.file
        with _opened(path) as file:
            header = _header(path, file, origin)
            content = file.read()
        if hashlib.sha256(content).hexdigest() != header.sha256:
            raise EngineError(f"{path} is damaged: its sha256 differs")
        return content

    def ready(self) -> None:
        """Whether engines can be written, which take minutes to build.

        Raises:
            OSError: they cannot.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder):
            pass

    def discard(self, origin: Origin) -> None:
        """Take an engine away, which TensorRT does not take though it is what was written."""
        with contextlib.suppress(OSError):
            (self.folder / origin.file).unlink()

    def write(self, origin: Origin, content: bytes) -> Built:
        """Keep an engine, in place of the one of its name.

        Raises:
            OSError: it cannot be written; what was there is as it was.
        """
        digest = hashlib.sha256(content).hexdigest()
        header = _Header(origin=origin, sha256=digest, bytes=len(content))
        path = self.folder / origin.file
        replace(path, header.model_dump_json().encode() + b"\n" + content)
        return Built(path, len(content))


def replace(path: Path, content: bytes) -> None:
    """Write a file whole, or not at all, in place of what is there.

    Raises:
        OSError: it cannot be written.
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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        # Reading what is no file might never end.
        if path.exists() and not path.is_file():
            raise EngineError(f"{path} is no file")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise EngineError(f"{path} is not built") from error
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error}") from error


def _header(path: Path, file: BinaryIO, origin: Origin) -> _Header:
    """What a file says of its engine, which comes next in it.

    Raises:
        EngineError: it is not the engine that is wanted, or is not whole.
    """
    line = file.readline(_LONGEST_HEADER)
    try:
        header = _Header.model_validate_json(line)
    except ValidationError as error:
        raise EngineError(f"{path} is no engine of this version of Tokenfold") from error
    if header.origin != origin:
        raise EngineError(f"{path} was built from something else: {_changed(header, origin)}")
    if os.fstat(file.fileno()).st_size != len(line) + header.bytes:
        raise EngineError(f"{path} is damaged: it has not the length that it says")
    return header


def _changed(header: _Header, origin: Origin) -> str:
    """What differs, for people."""
    theirs, ours = header.origin.model_dump(), origin.model_dump()
    names = [name for name in ours if theirs[name] != ours[name]]
    return f"its {', '.join(names)} differ" if len(names) > 1 else f"its {names[0]} differs"
