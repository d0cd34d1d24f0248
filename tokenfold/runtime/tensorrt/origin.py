"""What an engine is built from, and for what: all that it depends on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tokenfold.bundle.bundle import Bundle, sha256
from tokenfold.bundle.document import Document
from tokenfold.bundle.manifest import GRAPHS
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.tensorrt.profiles import Profile, profiles, takes_plan

Precision = Literal["fp32", "fp16", "bf16"]

REVISION = 1
"""Of how graphs are rewritten and engines built: a higher one makes all of them anew."""


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


def _file_name(*parts: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "--".join(parts))


def _identity(digests: Mapping[str, str], graph: str) -> str:
    """Of a graph's file, and of the one with its weights where there is one."""
    own = [digests[name] for name in sorted(digests) if name.startswith(graph)]
    return own[0] if len(own) == 1 else hashlib.sha256("".join(own).encode()).hexdigest()
