"""Engine specifications: everything that an engine's content depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tokenfold.bundle.bundle import Bundle, sha256
from tokenfold.bundle.document import Document
from tokenfold.bundle.manifest import GRAPHS
from tokenfold.bundle.workload import Plan
from tokenfold.runtime.tensorrt.profiles import (
    OptimizationProfile,
    optimization_profiles,
    takes_plan,
)
from tokenfold.runtime.tensorrt.target import BuildTarget, file_name

Precision = Literal["fp32", "fp16", "bf16"]

REVISION = 1
"""Revision of the graph rewriting and the build. Raising it invalidates all engines."""


class EngineError(RuntimeError):
    """An engine is missing, damaged, does not match its specification, or cannot run."""


class EngineSpec(Document):
    """Everything that an engine's content depends on.

    Attributes:
        graph: the graph's file in the bundle.
        sha256: digest of that file and, if there is one, of its weights file.
        plan: the fixed plan; None if the plan is an input.
    """

    revision: int = REVISION
    target: BuildTarget
    graph: str
    sha256: str
    precision: Precision
    plan: tuple[int, ...] | None
    profiles: tuple[OptimizationProfile, ...]

    @property
    def file(self) -> str:
        """File name of the engine."""
        target = self.target
        parts = [Path(self.graph).stem, self.precision, target.tensorrt, target.gpu]
        parts.append("no plugins" if target.plugins is None else f"plugins {target.plugins[:12]}")
        if self.plan is not None:
            digest = hashlib.sha256(repr(self.plan).encode()).hexdigest()
            parts.append(f"plan {digest[:12]}")
        return file_name(*parts) + ".engine"


def engine_specs(
    bundle: Bundle,
    target: BuildTarget,
    *,
    precision: Literal["bf16"] | None = None,
    static: bool = False,
) -> list[EngineSpec]:
    """Return the engines that a bundle needs: one for all plans per graph.

    Args:
        precision: replaces the bundle's precision, unless None.
        static: add one engine for the plan of each level.

    Raises:
        EngineError: TensorRT cannot run the bundle; see `unsupported_reason`.
    """
    if (reason := unsupported_reason(bundle, precision)) is not None:
        raise EngineError(reason)
    manifest = bundle.manifest
    digests = {name: file.sha256 for name, file in manifest.files.items()}
    bundle_precision: Precision = "fp16" if manifest.precision == "fp16" else "fp32"
    plans: list[Plan] = list(dict.fromkeys(level.plan for level in manifest.levels.values()))
    return [
        EngineSpec(
            target=target,
            graph=graph,
            sha256=_graph_digest(digests, graph),
            precision=precision or bundle_precision,
            plan=plan,
            profiles=optimization_profiles(manifest, graph, plan=plan is None),
        )
        for graph in GRAPHS[manifest.kind]
        for plan in (None, *(plans if static and takes_plan(graph) else ()))
    ]


def check_unchanged(bundle: Bundle, spec: EngineSpec) -> None:
    """Check that the graph is still the one that `spec` was made for; raise EngineError otherwise.

    Raises:
        EngineError: the bundle was replaced since it was opened.
    """
    names = (name for name in bundle.manifest.files if name.startswith(spec.graph))
    try:
        digests = {name: sha256(bundle.folder / name) for name in names}
    except OSError as error:
        raise EngineError(f"{bundle.folder} can no longer be read: {error}") from error
    if _graph_digest(digests, spec.graph) != spec.sha256:
        raise EngineError(
            f"{bundle.folder} was replaced while its engines were built: run the build again"
        )


def unsupported_reason(bundle: Bundle, precision: Literal["bf16"] | None = None) -> str | None:
    """Return the reason why TensorRT cannot run a bundle; None if it can."""
    manifest = bundle.manifest
    if (reason := manifest.cpu_only) is not None:
        return reason
    if precision == "bf16" and manifest.precision != "fp16":
        return f"bf16 engines need an fp16 bundle, and {manifest.name} is {manifest.precision}"
    return None


def _graph_digest(digests: Mapping[str, str], graph: str) -> str:
    """Return one digest of a graph's file and, if there is one, of its weights file."""
    parts = [digests[name] for name in sorted(digests) if name.startswith(graph)]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
