"""Which plans a bench measures: a bundle's levels, and constant ones beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from export.bundle import Manifest
from models.reduction.schedule import flops_ratio
from models.reduction.workload import Plan


class TargetError(ValueError):
    """A plan that the bundle does not have; the message says why."""


class Target(NamedTuple):
    """A plan to measure.

    Attributes:
        reduction: the fraction of FLOPs that was to be removed.
        flops_ratio: FLOPs left, of the unreduced network's.
    """

    plan: Plan
    reduction: float
    flops_ratio: float


def choose(
    manifest: Manifest, constant: Iterable[int] = (), levels: Iterable[str] | None = None
) -> dict[str, Target]:
    """The plans to measure, by name. The first is unreduced, whether it was asked for or not.

    Args:
        constant: tokens that every layer removes; these plans are named `r=8` and so on.
        levels: of the bundle; None for all.

    Raises:
        TargetError: there is no such level, or the network reduces nothing.
    """
    workload = manifest.workload
    found = {}
    for name in manifest.levels if levels is None else levels:
        if name not in manifest.levels:
            known = ", ".join(manifest.levels)
            raise TargetError(f"{manifest.name} has no level {name!r}; known: {known}")
        level = manifest.levels[name]
        found[name] = Target(level.plan, level.reduction, level.flops_ratio)
    for r in constant:
        plan = (r,) * workload.depth
        if r and workload.method == "none":
            raise TargetError(f"{manifest.name} was exported with method none: r is 0, not {r}")
        ratio = flops_ratio(workload, plan)
        found[f"r={r}"] = Target(plan, 1.0 - ratio, ratio)
    unreduced = [name for name, target in found.items() if not any(target.plan)]
    first = unreduced[0] if unreduced else _unreduced_name(manifest)
    baseline = found.pop(first, Target((0,) * workload.depth, 0.0, 1.0))
    return {first: baseline, **found}


def _unreduced_name(manifest: Manifest) -> str:
    names = (name for name, level in manifest.levels.items() if not any(level.plan))
    return next(names, "r=0")


def runs_on(manifest: Manifest, other: Manifest, plan: Plan) -> bool:
    """Whether a plan of one bundle means the same to another.

    Raises:
        TargetError: no plan does: the networks differ.
    """
    own, theirs = manifest.workload, other.workload
    if manifest.preprocess.size != other.preprocess.size or (
        (own.tokens, own.depth) != (theirs.tokens, theirs.depth)
    ):
        raise TargetError(
            f"{other.name} and {manifest.name} differ in image size, tokens or layers"
        )
    return theirs.method != "none" or not any(plan)
