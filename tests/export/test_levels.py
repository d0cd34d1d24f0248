"""Levels that follow from a recipe for a network."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests import tiny
from tokenfold.bundle.schedule import DEFAULT_LEVELS, Ramp, reach
from tokenfold.bundle.tasks import PairTask
from tokenfold.bundle.workload import PlanError, Shape
from tokenfold.export.levels import (
    attainable,
    default_level,
    default_reductions,
    plan_levels,
    remarks,
)
from tokenfold.export.recipe import Recipe, RecipeError, Shares
from tokenfold.models.networks.meter import MeterConfig
from tokenfold.models.networks.pair import HeadConfig
from tokenfold.models.networks.vilt import ViltConfig

PUMER = tiny.vilt().config.workload("pumer")
TOME = tiny.vilt().config.workload("tome")


def test_default_levels_depend_on_the_method() -> None:
    assert set(plan_levels(PUMER, Recipe(name="a"))) == {*DEFAULT_LEVELS, "pumer"}
    assert set(plan_levels(TOME, Recipe(name="a"))) == set(DEFAULT_LEVELS)
    nothing = tiny.vilt().config.workload("none")
    assert set(plan_levels(nothing, Recipe(name="a"))) == {"exact"}
    image = tiny.checkpoint().model.config.workload("none")
    assert set(plan_levels(image, Recipe(name="a"))) == {"exact"}


HEADS: dict[PairTask, HeadConfig] = {"vqa": HeadConfig(classes=3129, hidden=1536)}
METER = MeterConfig(form="sequential", protect_class=False, heads=HEADS).workload("pumer")


def test_default_levels_are_the_usual_ones_where_they_can_be_reached() -> None:
    vilt = ViltConfig(heads=HEADS)
    for method in ("pumer", "tome"):
        workload = vilt.workload(method)
        assert default_reductions(workload) == DEFAULT_LEVELS
        assert remarks(workload, Recipe(name="a")) == []


@pytest.mark.parametrize("shape", get_args(Shape))
def test_default_levels_shrink_where_most_is_out_of_reach(shape: Shape) -> None:
    # METER's image tower has more than half of its FLOPs, and PuMer does not reduce it.
    max_reduction = reach(METER, shape)
    assert max_reduction < 0.5
    recipe = Recipe(name="a", shape=shape)
    levels = plan_levels(METER, recipe)
    assert set(levels) == {*DEFAULT_LEVELS, "pumer"}
    plans = [levels[name].plan for name in DEFAULT_LEVELS]
    assert len(set(plans)) == len(plans)
    ratios = [levels[name].flops_ratio for name in DEFAULT_LEVELS]
    assert ratios == sorted(ratios, reverse=True)
    for level in levels.values():
        assert level.reduction == pytest.approx(1 - level.flops_ratio, abs=0.01)
    assert levels["fastest"].reduction == pytest.approx(0.9 * max_reduction, abs=0.001)
    # Unlike the most reduced plan, which leaves one token of an image.
    assert METER.streams(levels["fastest"].plan)[-1][1] >= 10
    assert default_level(recipe, levels) == "balanced"
    (remark,) = remarks(METER, recipe)
    assert f"at most {100 * max_reduction:.1f} % of its FLOPs" in remark


def test_default_levels_that_repeat_another_are_left_out() -> None:
    # With two text and two image tokens, one or two tokens can be removed.
    few = PUMER.sized(text=2, image=2)
    recipe = Recipe(name="a")
    levels = plan_levels(few, recipe)
    names = [name for name in DEFAULT_LEVELS if name in levels]
    assert names[0] == "exact"
    assert 1 < len(names) < len(DEFAULT_LEVELS)
    assert len({levels[name].plan for name in names}) == len(names)
    remark = remarks(few, recipe)[-1]
    assert remark.startswith("levels left out")
    assert all((name in remark) == (name not in names) for name in DEFAULT_LEVELS)


def test_requested_levels_are_kept() -> None:
    recipe = Recipe(name="a", levels={"one": 0.7, "two": 0.8})
    levels = plan_levels(METER, recipe)
    assert {name: level.reduction for name, level in levels.items()} == {"one": 0.7, "two": 0.8}
    assert levels["one"].flops_ratio == pytest.approx(1 - reach(METER))
    assert remarks(METER, recipe) == []


def test_the_default_level_must_exist() -> None:
    levels = plan_levels(TOME, Recipe(name="a", levels={"one": 0.1, "two": 0.5}))
    assert default_level(Recipe(name="a"), levels) == "one"
    with pytest.raises(RecipeError, match="'pumer' is not among one, two"):
        default_level(Recipe(name="a", default_level="pumer"), levels)
    with pytest.raises(ValidationError, match="'best' is not among"):
        Recipe(name="a", default_level="best")


def test_shares_and_counts_are_plans_of_pumer() -> None:
    amounts = {"own": Shares(0.1, 0.3, 0.2), "counts": (0, 0, 0, 3, 2, 9, 99, 0, 0, 0, 0, 0)}
    levels = plan_levels(PUMER, Recipe(name="a", levels=amounts))
    assert levels["own"].plan == PUMER.plan_at((0.1, 0.3, 0.2))
    # At most half of the text but its first token merges; one image token always stays.
    assert levels["counts"].plan == (0, 0, 0, 3, 2, 5, 11, 0, 0, 0, 0, 0)
    for level in levels.values():
        assert level.reduction == pytest.approx(1 - level.flops_ratio)


def test_amounts_of_another_method_are_refused() -> None:
    for workload, amount, message in [
        (TOME, Shares(0.1, 0.1, 0.1), "need the method pumer"),
        (PUMER, Ramp(8), "r8 is an amount of ToMe"),
        (PUMER, (1, 2), "12 counts"),
        (PUMER, (1,) * 12, "layer 0 does not reduce"),
    ]:
        with pytest.raises(PlanError, match=message):
            plan_levels(workload, Recipe(name="a", levels={"x": amount}))
    with pytest.raises(ValidationError, match="PuMer's"):
        Recipe(name="a", method="tome", rates=(0.1, 0.1, 0.1))


@given(counts=st.lists(st.integers(0, 30), min_size=6, max_size=6))
def test_attainable_plans_have_the_same_widths(counts: list[int]) -> None:
    plan = (0, 0, 0, *counts, 0, 0, 0)
    lowered = attainable(PUMER, plan)
    assert PUMER.streams(lowered) == PUMER.streams(plan)
    assert all(count <= requested for count, requested in zip(lowered, plan, strict=True))
    assert attainable(PUMER, lowered) == lowered
