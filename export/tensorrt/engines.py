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
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from pydantic import ValidationError

from export.bundle import Bundle, sha256
from export.document import Document
from export.manifest import GRAPHS
from export.tensorrt.profiles import Profile, profiles, takes_plan
from models.reduction.workload import Plan

Precision = Literal["fp32", "fp16", "bf16"]

VARIABLE = "TOKENFOLD_ENGINES"
"""Names the folder of engines; see `folder`."""

REVISION = 1
"""Of how graphs are rewritten and engines built: a higher one makes all of them anew."""

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


class EngineError(RuntimeError):
    """An engine that cannot be used: it is missing, damaged, or was built from something else."""


class Target(Document):
    """What engines are built for.

    Attributes:
        tensorrt: name and version, see `Flavour.version`.
        gpu: such as "NVIDIA H200 sm_90", or "sm_89" for all of that kind.
        plugins: fingerprint of the library of plugins; None for the ops' bodies.
    """

    tensorrt: str
    gpu: str
    plugins: str | None

    @property
    def timings(self) -> str:
        """The name of the file of what its builds measured."""
        return _file_name(self.tensorrt, self.gpu) + ".timings"


class Origin(Document):
    """What an engine was built from, and for what: all that it depends on.

    Attributes:
        graph: the graph's file in the bundle.
        sha256: of that file, and of the one with its weights where there is one.
        plan: the one that is fixed; None where it is an input.
    """

    revision: int = REVISION
    target: Target
    graph: str
    sha256: str
    precision: Precision
    plan: tuple[int, ...] | None
    profiles: tuple[Profile, ...]

    @property
    def file(self) -> str:
        """The engine's file name."""
        target = self.target
        parts = [Path(self.graph).stem, self.precision, target.tensorrt, target.gpu]
        parts.append("no plugins" if target.plugins is None else f"plugins {target.plugins[:12]}")
        if self.plan is not None:
            digest = hashlib.sha256(repr(self.plan).encode()).hexdigest()
            parts.append(f"plan {digest[:12]}")
        return _file_name(*parts) + ".engine"


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


def origins(
    bundle: Bundle,
    target: Target,
    *,
    precision: Literal["bf16"] | None = None,
    static: bool = False,
) -> list[Origin]:
    """The engines that a bundle wants: of each graph one for all plans.

    Args:
        precision: another one than the bundle's.
        static: beside it, one for the plan of each level.

    Raises:
        EngineError: TensorRT cannot run such a bundle; see `unfit`.
    """
    if (why := unfit(bundle, precision)) is not None:
        raise EngineError(why)
    manifest = bundle.manifest
    digests = {name: file.sha256 for name, file in manifest.files.items()}
    own: Precision = precision or ("fp16" if manifest.precision == "fp16" else "fp32")
    levels: list[Plan] = list(dict.fromkeys(level.plan for level in manifest.levels.values()))
    return [
        Origin(
            target=target,
            graph=graph,
            sha256=_identity(digests, graph),
            precision=own,
            plan=plan,
            profiles=profiles(manifest, graph, plan=plan is None),
        )
        for graph in GRAPHS[manifest.kind]
        for plan in (None, *(levels if static and takes_plan(graph) else ()))
    ]


def check_unchanged(bundle: Bundle, origin: Origin) -> None:
    """Whether a graph is still what an engine was to be built from.

    Raises:
        EngineError: the bundle was replaced since it was opened.
    """
    names = (name for name in bundle.manifest.files if name.startswith(origin.graph))
    try:
        digests = {name: sha256(bundle.folder / name) for name in names}
    except OSError as error:
        raise EngineError(f"{bundle.folder} is there no more: {error}") from error
    if _identity(digests, origin.graph) != origin.sha256:
        raise EngineError(f"{bundle.folder} was replaced while its engines were built: begin again")


def unfit(bundle: Bundle, precision: Literal["bf16"] | None = None) -> str | None:
    """Why TensorRT cannot run a bundle; None if it can."""
    manifest = bundle.manifest
    if (why := manifest.cpu_only) is not None:
        return why
    if precision == "bf16" and manifest.precision != "fp16":
        return f"bfloat16 is made of a float16 bundle, and {manifest.name} is {manifest.precision}"
    return None


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


def _file_name(*parts: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "--".join(parts))


def _identity(digests: Mapping[str, str], graph: str) -> str:
    """Of a graph's file, and of the one with its weights where there is one."""
    own = [digests[name] for name in sorted(digests) if name.startswith(graph)]
    return own[0] if len(own) == 1 else hashlib.sha256("".join(own).encode()).hexdigest()


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
