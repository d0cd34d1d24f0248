"""Plans that a bench measures: a bundle's levels, and constant plans in addition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.pair_workload import PairWorkload, Rates
from tokenfold.bundle.schedule import flops_ratio
from tokenfold.bundle.workload import BaseWorkload, Plan


class TargetError(ValueError):
    """The bundle does not have a requested plan; the message says why."""


class PlanTarget(NamedTuple):
    """A plan to measure.

    Attributes:
        reduction: requested fraction of FLOPs to remove.
        flops_ratio: FLOPs relative to the unreduced network's.
    """

    plan: Plan
    reduction: float
    flops_ratio: float


def choose(
    manifest: Manifest,
    constant: Iterable[int] = (),
    levels: Iterable[str] | None = None,
    rates: Iterable[Rates] = (),
) -> dict[str, PlanTarget]:
    """Choose the plans to measure, by name. The first is unreduced, even if it was not requested.

    Args:
        constant: numbers of tokens that every layer removes; the plans are named `r=8` and so on.
        levels: levels of the bundle; None for all.
        rates: PuMer's fractions; the plans are named `0.1/0.3/0.2` and so on.

    Raises:
        TargetError: there is no such level, or the network does not support such a reduction.
    """
    workload = manifest.workload
    targets = {}
    for name in manifest.levels if levels is None else levels:
        if name not in manifest.levels:
            known = ", ".join(manifest.levels)
            raise TargetError(f"{manifest.name} has no level {name!r}; known: {known}")
        level = manifest.levels[name]
        targets[name] = PlanTarget(level.plan, level.reduction, level.flops_ratio)
    for r in constant:
        if r and workload.method == "none":
            raise TargetError(
                f"{manifest.name} was exported with method none: r must be 0, not {r}"
            )
        if workload.method == "pumer":
            raise TargetError(f"{manifest.name} was exported with PuMer, which has rates, not r")
        targets[f"r={r}"] = _target(workload, (r,) * workload.plan_length)
    for shares in rates:
        if not isinstance(workload, PairWorkload) or workload.method != "pumer":
            raise TargetError(
                f"{manifest.name} was exported with method {workload.method}; only PuMer has rates"
            )
        name = "/".join(f"{share:g}" for share in shares)
        targets[name] = _target(workload, workload.plan_at(shares))
    unreduced = [name for name, target in targets.items() if not any(target.plan)]
    first = unreduced[0] if unreduced else _unreduced_name(manifest)
    baseline = targets.pop(first, PlanTarget(workload.unreduced, 0.0, 1.0))
    return {first: baseline, **targets}


def _target(workload: BaseWorkload, plan: Plan) -> PlanTarget:
    ratio = flops_ratio(workload, plan)
    return PlanTarget(plan, 1.0 - ratio, ratio)


def _unreduced_name(manifest: Manifest) -> str:
    names = (name for name, level in manifest.levels.items() if not any(level.plan))
    return next(names, "exact" if manifest.kind == "pair" else "r=0")


def shared_targets(
    manifest: Manifest, other: Manifest, targets: Mapping[str, PlanTarget]
) -> dict[str, PlanTarget]:
    """Return the targets that another bundle can run too, using its own unreduced plan.

    Raises:
        TargetError: see `runs_on`.
    """
    # The plan of another method may have another length.
    unreduced = other.workload.unreduced
    return {
        name: target if any(target.plan) else target._replace(plan=unreduced)
        for name, target in targets.items()
        if runs_on(manifest, other, target.plan)
    }


def runs_on(manifest: Manifest, other: Manifest, plan: Plan) -> bool:
    """Whether a plan of one bundle has the same meaning for another bundle.

    Raises:
        TargetError: the networks differ, so no plan does.
    """
    workload, other_workload = manifest.workload, other.workload
    if manifest.preprocess.size != other.preprocess.size or (
        (workload.kind, workload.tokens, workload.depth)
        != (other_workload.kind, other_workload.tokens, other_workload.depth)
    ):
        raise TargetError(
            f"{other.name} and {manifest.name} differ in image size, tokens or layers"
        )
    if not any(plan):
        return True
    if "pumer" in (workload.method, other_workload.method):
        return workload.method == other_workload.method
    return other_workload.method != "none"
