"""What to make of a checkpoint, and the levels that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokenfold.bundle.document import Name, Share
from tokenfold.bundle.manifest import Level, Precision
from tokenfold.bundle.pair_workload import PairWorkload, Rates
from tokenfold.bundle.schedule import DEFAULT_LEVELS, Ramp, flops_ratio, linear, plan_for, reach
from tokenfold.bundle.workload import BaseWorkload, ImageWorkload, Method, Plan, PlanError, Shape

AnyMethod = Literal["none", "tome", "pitome", "pumer"]
Stage = Callable[[str, int], Callable[[], None]]
"""Starts a named stage of so many steps, and returns what to call after each step."""


class Shares(NamedTuple):
    """PuMer's own way to say how much: of what enters each reducing layer."""

    prune: float
    merge: float
    text: float


Amount = Share | Ramp | Shares | tuple[int, ...]
"""How much a level reduces: a fraction of the FLOPs, ToMe's (r, inflect), PuMer's shares, or the
plan itself."""

PUBLISHED = "pumer"
"""The level of the shares that a checkpoint was trained with."""


# The share of what a network can reach that the most reduced default level takes, where it cannot
# reach the usual: beyond, PuMer leaves next to nothing of an image.
_MOST = 0.9


class RecipeError(ValueError):
    """Something that cannot be made of this checkpoint; the message says why."""


class Recipe(BaseModel):
    """What to make of a checkpoint.

    Attributes:
        name: what the service will call the model.
        method: how tokens are chosen; by default ToMe's, and PuMer's for images with texts.
        levels: name -> how much to reduce; by default those of `default_reductions`, and for PuMer
            beside them the checkpoint's own shares; with the method `none` there is nothing but
            `exact`.
        default_level: by default `balanced` where there is one, else the first.
        proportional: whether attention counts token sizes; off for MAE trained without ToMe.
        weighted: of networks with texts, whether tokens merge by size and attention counts sizes;
            by default what the checkpoint wants.
        layers, rates: of PuMer, by default the checkpoint's.
        tower: of METER, tokens that ToMe removes in each layer of the image tower at every level:
            levels count from there.
        images: a folder or zip of images to verify and measure on; folder names are labels, or
            for a network with texts `items.jsonl` holds questions and answers, and for a dual
            encoder what each image was described by.
        threads: that measure side by side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    method: AnyMethod | None = None
    precision: Precision = "fp32"
    levels: dict[Name, Amount] | None = Field(default=None, min_length=1)
    default_level: Name | None = None
    shape: Shape = "constant"
    proportional: bool = True
    weighted: bool | None = None
    layers: tuple[int, ...] | None = None
    rates: Rates | None = None
    tower: int = Field(default=0, ge=0)
    images: Path | None = None
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = self._names
        if self.default_level is not None and self.default_level not in known:
            raise ValueError(
                f"the default level {self.default_level!r} is not among {', '.join(known)}"
            )
        if self.method != "pumer" and self.method is not None and (self.layers or self.rates):
            raise ValueError(f"layers and rates are PuMer's, not those of {self.method}")
        return self

    @property
    def image_method(self) -> Method:
        """How the tokens of an image alone are chosen.

        Raises:
            RecipeError: the recipe has something that is for images with texts only.
        """
        if self.method == "pumer":
            raise RecipeError("PuMer reduces an image with a text; here images are seen alone")
        if self.layers or self.rates or self.weighted is not None or self.tower:
            raise RecipeError(
                "layers, rates, weights and a tower are for networks that see images with texts"
            )
        return self.method or "tome"

    @property
    def _names(self) -> list[str]:
        return [*(DEFAULT_LEVELS if self.levels is None else self.levels), PUBLISHED]

    def amounts(self, workload: BaseWorkload) -> dict[str, Amount]:
        """The levels to make for a network, and how much each is to reduce."""
        if self.levels is not None:
            return dict(self.levels)
        assert isinstance(workload, ImageWorkload | PairWorkload)
        if workload.method == "none":
            return {"exact": 0.0}
        own: dict[str, Amount] = {}
        if isinstance(workload, PairWorkload) and workload.method == "pumer":
            own[PUBLISHED] = Shares(*workload.rates)
        return {**default_reductions(workload, self.shape), **own}

    def default(self, levels: dict[str, Level]) -> str:
        """The level for requests that choose none.

        Raises:
            RecipeError: the one that was asked for is not there.
        """
        if self.default_level is not None and self.default_level not in levels:
            raise RecipeError(
                f"the default level {self.default_level!r} is not among {', '.join(levels)}"
            )
        chosen = "balanced" if "balanced" in levels else next(iter(levels))
        return self.default_level or chosen


def default_reductions(workload: BaseWorkload, shape: Shape = "constant") -> dict[str, float]:
    """The fraction of the FLOPs that each default level is to remove: `DEFAULT_LEVELS`, or less.

    A network whose FLOPs are for the most part out of reach (PuMer leaves METER's towers alone)
    would have one plan, its most reduced, at most levels. There all are scaled down together. What
    would repeat the level before, as in a network of few tokens, is left out.
    """
    most = max(DEFAULT_LEVELS.values())
    reached = reach(workload, shape)
    scale = 1.0 if reached >= _MOST * most else _MOST * reached / most
    found: dict[str, float] = {}
    plans: list[Plan] = []
    for name, usual in DEFAULT_LEVELS.items():
        reduction = usual if scale == 1.0 else round(usual * scale, 3)
        plan = plan_for(workload, reduction, shape)
        if plan not in plans:
            found[name] = reduction
            plans.append(plan)
    return found


def remarks(workload: BaseWorkload, recipe: Recipe) -> list[str]:
    """What a user should know who asked for no levels of their own."""
    amounts = recipe.amounts(workload)
    if recipe.levels is not None or amounts.keys() == {"exact"}:
        return []
    told = []
    if any(amounts.get(name, usual) != usual for name, usual in DEFAULT_LEVELS.items()):
        most = 100 * reach(workload, recipe.shape)
        told.append(f"levels are smaller than usual: at most {most:.1f} % of the FLOPs can go here")
    if left_out := [name for name in DEFAULT_LEVELS if name not in amounts]:
        told.append(f"left out, for they would repeat another level: {', '.join(left_out)}")
    return told


def plan_levels(workload: BaseWorkload, recipe: Recipe) -> dict[str, Level]:
    """The requested levels with their plans, from the least reduced to the most.

    Raises:
        PlanError: an explicit plan does not fit the network, or an amount its method.
    """
    levels = {}
    for name, amount in recipe.amounts(workload).items():
        plan = _plan(workload, amount, recipe.shape)
        ratio = flops_ratio(workload, plan)
        levels[name] = Level(
            reduction=amount if isinstance(amount, float) else 1 - ratio,
            plan=plan,
            flops_ratio=ratio,
            tokens_out=workload.widths(plan)[-1],
        )
    return dict(sorted(levels.items(), key=lambda level: -level[1].flops_ratio))


def _plan(workload: BaseWorkload, amount: Amount, shape: Shape) -> Plan:
    if isinstance(amount, float):
        return plan_for(workload, amount, shape)
    pumer = isinstance(workload, PairWorkload) and workload.method == "pumer"
    if isinstance(amount, Shares):
        if not isinstance(workload, PairWorkload) or not pumer:
            raise PlanError("shares to prune and merge, such as 0.1/0.3/0.2, are PuMer's")
        return workload.plan_at(amount, shape)
    if isinstance(workload, PairWorkload) and pumer:
        if isinstance(amount, Ramp):
            raise PlanError("r is ToMe's: PuMer has shares to prune and merge, as in 0.1/0.3/0.2")
        return attainable(workload, amount)
    asked = linear(*amount, workload.plan_length) if isinstance(amount, Ramp) else amount
    return tuple(before - after for before, after in pairwise(workload.widths(asked)))


def attainable(workload: PairWorkload, plan: Plan) -> Plan:
    """What is left of a plan for PuMer when no layer is asked for more than can go.

    Raises:
        PlanError: it is of another length, or reduces in a layer that never does.
    """
    workload.check(plan)
    found: list[int] = []
    streams = workload.streams(plan)
    for layer, ((text, image), (text_after, image_after)) in enumerate(pairwise(streams)):
        prune = min(plan[3 * layer], max(image - 1, 0))
        found += [prune, image - prune - image_after, text - text_after]
        if layer not in workload.layers and (text, image) != (text_after, image_after):
            raise PlanError(f"layer {layer} does not reduce here, only {workload.layers} do")
    return tuple(found)
