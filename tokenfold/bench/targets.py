"""Which plans a bench measures: a bundle's levels, and constant ones beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tokenfold.bundle.manifest import Manifest
from tokenfold.bundle.pair_workload import PairWorkload, Rates
from tokenfold.bundle.schedule import flops_ratio
from tokenfold.bundle.workload import BaseWorkload, Plan


class TargetError(ValueError):
    """A plan that the bundle does not have; the message says why."""


class PlanTarget(NamedTuple):
    """A plan to measure.

    Attributes:
        reduction: the fraction of FLOPs that was to be removed.
        flops_ratio: FLOPs left, of the unreduced network's.
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
    """The plans to measure, by name. The first is unreduced, whether it was asked for or not.

    Args:
        constant: tokens that every layer removes; these plans are named `r=8` and so on.
        levels: of the bundle; None for all.
        rates: PuMer's shares; these plans are named `0.1/0.3/0.2` and so on.

    Raises:
        TargetError: there is no such level, or the network does not reduce in this way.
    """
    workload = manifest.workload
    found = {}
    for name in manifest.levels if levels is None else levels:
        if name not in manifest.levels:
            known = ", ".join(manifest.levels)
            raise TargetError(f"{manifest.name} has no level {name!r}; known: {known}")
        level = manifest.levels[name]
        found[name] = PlanTarget(level.plan, level.reduction, level.flops_ratio)
    for r in constant:
        if r and workload.method == "none":
            raise TargetError(f"{manifest.name} was exported with method none: r is 0, not {r}")
        if workload.method == "pumer":
            raise TargetError(f"{manifest.name} was exported with PuMer, which has rates, not r")
        found[f"r={r}"] = _target(workload, (r,) * workload.plan_length)
    for shares in rates:
        if not isinstance(workload, PairWorkload) or workload.method != "pumer":
            raise TargetError(
                f"{manifest.name} was exported with method {workload.method}: rates are PuMer's"
            )
        name = "/".join(f"{share:g}" for share in shares)
        found[name] = _target(workload, workload.plan_at(shares))
    unreduced = [name for name, target in found.items() if not any(target.plan)]
    first = unreduced[0] if unreduced else _unreduced_name(manifest)
    baseline = found.pop(first, PlanTarget(workload.unreduced, 0.0, 1.0))
    return {first: baseline, **found}


def _target(workload: BaseWorkload, plan: Plan) -> PlanTarget:
    ratio = flops_ratio(workload, plan)
    return PlanTarget(plan, 1.0 - ratio, ratio)


def _unreduced_name(manifest: Manifest) -> str:
    names = (name for name, level in manifest.levels.items() if not any(level.plan))
    return next(names, "exact" if manifest.kind == "pair" else "r=0")


def shared_targets(manifest: Manifest, other: Manifest, targets: Mapping[str, PlanTarget]) -> dict[str, PlanTarget]:
    """Those that another bundle can run too, with its own plan where nothing is reduced.

    Raises:
        TargetError: see `runs_on`.
    """
    # Another method's plan may be of another length.
    unreduced = other.workload.unreduced
    return {
        name: target if any(target.plan) else target._replace(plan=unreduced)
        for name, target in targets.items()
        if runs_on(manifest, other, target.plan)
    }


def runs_on(manifest: Manifest, other: Manifest, plan: Plan) -> bool:
    """Whether a plan of one bundle means the same to another.

    Raises:
        TargetError: no plan does: the networks differ.
    """
    own, theirs = manifest.workload, other.workload
    if manifest.preprocess.size != other.preprocess.size or (
        (own.kind, own.tokens, own.depth) != (theirs.kind, theirs.tokens, theirs.depth)
    ):
        raise TargetError(
            f"{other.name} and {manifest.name} differ in image size, tokens or layers"
        )
    if not any(plan):
        return True
    if "pumer" in (own.method, theirs.method):
        return own.method == theirs.method
    return theirs.method != "none"
