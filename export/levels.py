"""Levels of a bundle: the plans that follow from a recipe for a network."""

from __future__ import annotations

from itertools import pairwise

from tokenfold.bundle.manifest import Level
from tokenfold.bundle.pair_workload import PairWorkload
from tokenfold.bundle.schedule import DEFAULT_LEVELS, Ramp, flops_ratio, linear, plan_for, reach
from tokenfold.bundle.workload import BaseWorkload, ImageWorkload, Plan, PlanError, Shape
from tokenfold.export.recipe import PUBLISHED, Amount, Recipe, RecipeError, Shares

# Share of the reachable reduction that the most reduced default level takes, in a network that
# cannot reach the usual levels. Beyond it, PuMer leaves nearly nothing of an image.
_MAX_SHARE_OF_REACH = 0.9


def plan_levels(workload: BaseWorkload, recipe: Recipe) -> dict[str, Level]:
    """Return the recipe's levels with their plans, from the least reduced to the most.

    Raises:
        PlanError: an explicit plan does not fit the network, or an amount its method.
    """
    levels = {}
    for name, amount in level_amounts(workload, recipe).items():
        plan = _plan(workload, amount, recipe.shape)
        ratio = flops_ratio(workload, plan)
        levels[name] = Level(
            reduction=amount if isinstance(amount, float) else 1 - ratio,
            plan=plan,
            flops_ratio=ratio,
            tokens_out=workload.widths(plan)[-1],
        )
    return dict(sorted(levels.items(), key=lambda level: -level[1].flops_ratio))


def default_level(recipe: Recipe, levels: dict[str, Level]) -> str:
    """Return the level for requests that choose none.

    Raises:
        RecipeError: the recipe's default level is not among the levels.
    """
    if recipe.default_level is not None and recipe.default_level not in levels:
        raise RecipeError(
            f"the default level {recipe.default_level!r} is not among {', '.join(levels)}"
        )
    usual = "balanced" if "balanced" in levels else next(iter(levels))
    return recipe.default_level or usual


def level_amounts(workload: BaseWorkload, recipe: Recipe) -> dict[str, Amount]:
    """Return the levels to make for a network, and the amount that each reduces."""
    if recipe.levels is not None:
        return dict(recipe.levels)
    assert isinstance(workload, ImageWorkload | PairWorkload)
    if workload.method == "none":
        return {"exact": 0.0}
    amounts: dict[str, Amount] = {**default_reductions(workload, recipe.shape)}
    if isinstance(workload, PairWorkload) and workload.method == "pumer":
        amounts[PUBLISHED] = Shares(*workload.rates)
    return amounts


def default_reductions(workload: BaseWorkload, shape: Shape = "constant") -> dict[str, float]:
    """Return the fraction of FLOPs that each default level removes.

    These are `DEFAULT_LEVELS` where the network can reach them. Where most FLOPs are out of reach
    (PuMer does not touch METER's towers), most levels would get the same plan, the most reduced
    one; all levels are then scaled down together. A level that would repeat the plan of the level
    before, as in a network of few tokens, is left out.
    """
    usual_max = max(DEFAULT_LEVELS.values())
    reached = reach(workload, shape)
    limit = _MAX_SHARE_OF_REACH * reached
    scale = 1.0 if reached >= _MAX_SHARE_OF_REACH * usual_max else limit / usual_max
    reductions: dict[str, float] = {}
    plans: list[Plan] = []
    for name, usual in DEFAULT_LEVELS.items():
        reduction = usual if scale == 1.0 else round(usual * scale, 3)
        plan = plan_for(workload, reduction, shape)
        if plan not in plans:
            reductions[name] = reduction
            plans.append(plan)
    return reductions


def remarks(workload: BaseWorkload, recipe: Recipe) -> list[str]:
    """Return remarks for a user about default levels that differ from the usual ones."""
    amounts = level_amounts(workload, recipe)
    if recipe.levels is not None or amounts.keys() == {"exact"}:
        return []
    sentences = []
    if any(amounts.get(name, usual) != usual for name, usual in DEFAULT_LEVELS.items()):
        limit = 100 * reach(workload, recipe.shape)
        sentences.append(
            f"levels are smaller than usual: this network can lose at most {limit:.1f} % of its "
            "FLOPs"
        )
    if missing := [name for name in DEFAULT_LEVELS if name not in amounts]:
        sentences.append(
            f"levels left out because they would repeat another one: {', '.join(missing)}"
        )
    return sentences


def _plan(workload: BaseWorkload, amount: Amount, shape: Shape) -> Plan:
    if isinstance(amount, float):
        return plan_for(workload, amount, shape)
    pumer = isinstance(workload, PairWorkload) and workload.method == "pumer"
    if isinstance(amount, Shares):
        if not isinstance(workload, PairWorkload) or not pumer:
            raise PlanError("shares to prune and merge, such as 0.1/0.3/0.2, need the method pumer")
        return workload.plan_at(amount, shape)
    if isinstance(workload, PairWorkload) and pumer:
        if isinstance(amount, Ramp):
            raise PlanError(
                f"r{amount.r} is an amount of ToMe: PuMer takes shares to prune and merge, such as "
                "0.1/0.3/0.2"
            )
        return attainable(workload, amount)
    counts = linear(*amount, workload.plan_length) if isinstance(amount, Ramp) else amount
    return tuple(before - after for before, after in pairwise(workload.widths(counts)))


def attainable(workload: PairWorkload, plan: Plan) -> Plan:
    """Return a PuMer plan with each count lowered to the tokens that its layer really removes.

    Raises:
        PlanError: the plan has a wrong length, or reduces in a layer that never does.
    """
    workload.check(plan)
    counts: list[int] = []
    streams = workload.streams(plan)
    for layer, ((text, image), (text_after, image_after)) in enumerate(pairwise(streams)):
        prune = min(plan[3 * layer], max(image - 1, 0))
        counts += [prune, image - prune - image_after, text - text_after]
        if layer not in workload.layers and (text, image) != (text_after, image_after):
            raise PlanError(
                f"layer {layer} does not reduce; the reducing layers are {workload.layers}"
            )
    return tuple(counts)
