"""Levels as they follow from a recipe, for either kind of network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from export.recipe import Recipe, RecipeError, Shares, plan_levels, reached
from models.reduction.schedule import DEFAULT_LEVELS, Ramp
from models.reduction.workload import PlanError
from tests import tiny

PUMER = tiny.vilt().config.workload("pumer")
TOME = tiny.vilt().config.workload("tome")


def test_default_levels_are_of_the_method() -> None:
    assert set(plan_levels(PUMER, Recipe(name="a"))) == {*DEFAULT_LEVELS, "pumer"}
    assert set(plan_levels(TOME, Recipe(name="a"))) == set(DEFAULT_LEVELS)
    nothing = tiny.vilt().config.workload("none")
    assert set(plan_levels(nothing, Recipe(name="a"))) == {"exact"}
    image = tiny.checkpoint().model.config.workload("none")
    assert set(plan_levels(image, Recipe(name="a"))) == {"exact"}


def test_the_default_level_has_to_be_there() -> None:
    levels = plan_levels(TOME, Recipe(name="a", levels={"one": 0.1, "two": 0.5}))
    assert Recipe(name="a").default(levels) == "one"
    with pytest.raises(RecipeError, match="'pumer' is not among one, two"):
        Recipe(name="a", default_level="pumer").default(levels)
    with pytest.raises(ValidationError, match="'best' is not among"):
        Recipe(name="a", default_level="best")


def test_shares_and_counts_are_plans_of_pumer() -> None:
    amounts = {"own": Shares(0.1, 0.3, 0.2), "counts": (0, 0, 0, 3, 2, 9, 99, 0, 0, 0, 0, 0)}
    found = plan_levels(PUMER, Recipe(name="a", levels=amounts))
    assert found["own"].plan == PUMER.plan_at((0.1, 0.3, 0.2))
    # At most half of the text but its first token merges; one image token always stays.
    assert found["counts"].plan == (0, 0, 0, 3, 2, 5, 11, 0, 0, 0, 0, 0)
    for level in found.values():
        assert level.reduction == pytest.approx(1 - level.flops_ratio)


def test_amounts_of_another_method() -> None:
    for workload, amount, message in [
        (TOME, Shares(0.1, 0.1, 0.1), "are PuMer's"),
        (PUMER, Ramp(8), "r is ToMe's"),
        (PUMER, (1, 2), "12 counts"),
        (PUMER, (1,) * 12, "layer 0 does not reduce"),
    ]:
        with pytest.raises(PlanError, match=message):
            plan_levels(workload, Recipe(name="a", levels={"x": amount}))
    with pytest.raises(ValidationError, match="PuMer's"):
        Recipe(name="a", method="tome", rates=(0.1, 0.1, 0.1))


@given(counts=st.lists(st.integers(0, 30), min_size=6, max_size=6))
def test_what_is_reached_costs_what_was_asked(counts: list[int]) -> None:
    plan = (0, 0, 0, *counts, 0, 0, 0)
    found = reached(PUMER, plan)
    assert PUMER.streams(found) == PUMER.streams(plan)
    assert all(own <= asked for own, asked in zip(found, plan, strict=True))
    assert reached(PUMER, found) == found
