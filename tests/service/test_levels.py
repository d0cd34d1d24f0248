"""The selector: which plan a request gets, and what it is told when there is none."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.bundle import (
    Level,
    LevelProfile,
    Manifest,
    Profile,
    Quality,
    StoredFile,
)
from models.preprocess import Preprocess
from models.reduction.schedule import flops_ratio, plan_for
from models.reduction.workload import Workload
from service.costs import Costs
from service.errors import (
    AccuracyBudget,
    InvalidRequest,
    LatencyBudget,
    NoProfile,
    TooSlowNow,
    TwoSelectors,
    UnknownLevel,
)
from service.levels import Levels, Selector

VIT_S = Workload(
    method="tome", tokens=197, protected=1, depth=12, dim=384, mlp_dim=1536, metric_dim=64,
    stem=58_000_000, head=384_000,
)  # fmt: skip
NAMES = {"exact": 0.0, "high": 0.2, "balanced": 0.4, "fast": 0.55, "fastest": 0.7}
MILLISECONDS = {"exact": 50.0, "high": 40.0, "balanced": 30.0, "fast": 22.0, "fastest": 15.0}
ACCURACY = {"exact": 0.80, "high": 0.805, "balanced": 0.79, "fast": 0.77, "fastest": 0.70}


def manifest(workload: Workload = VIT_S) -> Manifest:
    plans = {name: plan_for(workload, share) for name, share in NAMES.items()}
    return Manifest(
        name="vit",
        source="tests",
        precision="fp32",
        workload=workload,
        preprocess=Preprocess(size=(224, 224)),
        tasks={"classify": ("a", "b")},
        # From the most reduced on: the service sorts them.
        levels={
            name: Level(
                reduction=NAMES[name],
                plan=plans[name],
                flops_ratio=flops_ratio(workload, plans[name]),
                tokens_out=workload.widths(plans[name])[-1],
            )
            for name in reversed(NAMES)
        },
        default_level="balanced",
        versions={},
        files={"model.onnx": StoredFile(sha256="0" * 64, bytes=1)},
    )


def profile(accuracy: dict[str, float]) -> Profile:
    return Profile(
        measured=date(2026, 1, 1),
        machine="none",
        runtime="none",
        levels={
            name: LevelProfile(
                quality={"classify": Quality(metric="top1", value=value, low=0, high=1, samples=10)}
            )
            for name, value in accuracy.items()
        },
    )


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def levels(
    accuracy: dict[str, float] | None = None,
    default: str | None = None,
    clock: Clock | None = None,
) -> Levels:
    # Without a clock of its own a test takes no time.
    costs = Costs(VIT_S, clock=clock or Clock())
    found = Levels(
        manifest(), None if accuracy is None else profile(accuracy), costs, default=default
    )
    costs.learn({level.plan: MILLISECONDS[name] / 1000 for name, level in found.levels.items()})
    return found


def test_by_name_and_by_default() -> None:
    assert levels().choose(Selector(level="fast")).level == "fast"
    assert levels().choose(Selector()).level == "balanced"
    assert levels(default="high").choose(Selector()).level == "high"


def test_from_the_least_reduced_to_the_most() -> None:
    assert list(levels().levels) == list(NAMES)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UnknownLevel, match=r"'turbo'.*exact, high, balanced, fast, fastest"):
        levels().choose(Selector(level="turbo"))
    with pytest.raises(UnknownLevel, match="'turbo'"):
        levels(default="turbo")


def test_two_selectors() -> None:
    with pytest.raises(TwoSelectors, match="reduction and min_accuracy"):
        levels().choose(Selector(reduction=0.1, min_accuracy=0.0))


@given(st.floats(0, 1))
def test_any_reduction_gets_the_closest_plan(reduction: float) -> None:
    choice = levels().choose(Selector(reduction=reduction))
    assert choice.plan == plan_for(VIT_S, reduction)
    assert choice.requested == reduction
    assert choice.work.ratio == flops_ratio(VIT_S, choice.plan)
    assert (choice.work.tokens_in, choice.work.tokens_out) == (197, VIT_S.widths(choice.plan)[-1])
    assert choice.level in {*NAMES, "custom"}


def test_a_reduction_that_is_a_level_has_its_name() -> None:
    for name, share in NAMES.items():
        assert levels().choose(Selector(reduction=share)).level == name
    assert levels().choose(Selector(reduction=0.31)).level == "custom"


@pytest.mark.parametrize("reduction", [-0.1, 1.1, float("nan"), float("inf")])
def test_reductions_outside_the_range(reduction: float) -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        levels().choose(Selector(reduction=reduction))


@pytest.mark.parametrize(
    ("budget", "expected"), [(1000, "exact"), (50.1, "exact"), (49, "high"), (15.1, "fastest")]
)
def test_latency_budget_takes_the_least_reduced_that_fits(budget: float, expected: str) -> None:
    assert levels().choose(Selector(max_latency_ms=budget)).level == expected


def test_latency_budget_takes_the_most_accurate_that_fits() -> None:
    assert levels(ACCURACY).choose(Selector(max_latency_ms=1000)).level == "high"


def test_latency_budget_counts_the_queue_and_the_rounds() -> None:
    found = levels()
    assert found.choose(Selector(max_latency_ms=60), wait=0.02).level == "high"
    assert found.choose(Selector(max_latency_ms=60), rounds=2).level == "balanced"


def test_latency_budget_nobody_meets() -> None:
    with pytest.raises(LatencyBudget, match=r"fastest level, fastest, takes about 15\.0 ms"):
        levels().choose(Selector(max_latency_ms=10))


def test_latency_budget_that_only_the_queue_breaks() -> None:
    with pytest.raises(TooSlowNow, match="1200 ms in the queue") as caught:
        levels().choose(Selector(max_latency_ms=60), wait=1.2)
    assert caught.value.retry_after == 2


@pytest.mark.parametrize(
    ("wanted", "expected"), [(0.8, "high"), (0.79, "balanced"), (0.5, "fastest"), (0, "fastest")]
)
def test_accuracy_budget_takes_the_fastest_that_reaches_it(wanted: float, expected: str) -> None:
    assert levels(ACCURACY).choose(Selector(min_accuracy=wanted)).level == expected


def test_a_latency_budget_is_not_locked_out_for_good() -> None:
    clock = Clock()
    found = levels(clock=clock)
    for _ in range(200):
        found.costs.observe(plan_for(VIT_S, 0.0), 60.0)
    with pytest.raises(LatencyBudget):
        found.choose(Selector(max_latency_ms=60))
    # Every budget is refused, so nothing runs that could show that the machine is free again.
    clock.now += 60
    assert found.choose(Selector(max_latency_ms=60)).level == "exact"


def test_accuracy_budget_nobody_meets() -> None:
    with pytest.raises(AccuracyBudget, match=r"high, was measured at 0\.8050"):
        levels(ACCURACY).choose(Selector(min_accuracy=0.9))


def test_accuracy_was_never_measured() -> None:
    with pytest.raises(NoProfile, match="vit"):
        levels().choose(Selector(min_accuracy=0.1))


def test_levels_of_which_some_were_measured() -> None:
    found = levels({"fast": 0.9})
    assert found.choose(Selector(min_accuracy=0.5)).level == "fast"
    # Nothing can be said of the others, so the least reduced counts as the best.
    assert found.choose(Selector(max_latency_ms=1000)).level == "exact"


def test_a_network_without_reduction_has_one_plan() -> None:
    workload = VIT_S.model_copy(update={"method": "none"})
    found = Levels(manifest(workload), None, Costs(workload))
    assert found.choose(Selector(reduction=0.7)).plan == (0,) * 12
    assert found.choose(Selector(reduction=0.7)).level == "exact"


class TestCosts:
    def test_nothing_is_known_before_the_warm_up(self) -> None:
        costs = Costs(VIT_S)
        costs.observe(plan_for(VIT_S, 0.5), 1.0)
        assert costs.seconds(plan_for(VIT_S, 0.5)) == 0.0

    def test_between_levels_by_flops(self) -> None:
        found = levels().costs
        middle = found.seconds(plan_for(VIT_S, 0.3))
        assert 0.030 < middle < 0.040
        assert found.seconds(plan_for(VIT_S, 1.0)) == pytest.approx(0.015)

    def test_runs_correct_every_level(self) -> None:
        found = levels().costs
        exact, fast = plan_for(VIT_S, 0.0), plan_for(VIT_S, 0.55)
        for _ in range(200):
            found.observe(exact, 0.1)
        assert found.seconds(exact) == pytest.approx(0.1, rel=0.01)
        assert found.seconds(fast) == pytest.approx(0.044, rel=0.01)
        for _ in range(200):
            found.observe(fast, 0.022)
        assert found.seconds(exact) == pytest.approx(0.05, rel=0.01)

    def test_one_stall_does_not_shut_out_budgets(self) -> None:
        found = levels().costs
        found.observe(plan_for(VIT_S, 0.0), 60.0)
        assert found.seconds(plan_for(VIT_S, 0.0)) < 0.08

    def test_slowness_is_forgotten_while_nothing_runs(self) -> None:
        clock = Clock()
        found = levels(clock=clock).costs
        exact = plan_for(VIT_S, 0.0)
        for _ in range(200):
            found.observe(exact, 0.25)
        assert found.seconds(exact) == pytest.approx(0.25, rel=0.01)
        clock.now += 5
        assert found.seconds(exact) == pytest.approx(0.15, rel=0.01)
        # The next run corrects what is left, not what was.
        found.observe(exact, 0.05)
        assert found.seconds(exact) == pytest.approx(0.145, rel=0.01)
        clock.now += 3600
        assert found.seconds(exact) == pytest.approx(0.05)

    def test_quickness_is_not_forgotten(self) -> None:
        # Else a budget that was met an hour ago would be refused, and no run could correct that.
        clock = Clock()
        found = levels(clock=clock).costs
        exact = plan_for(VIT_S, 0.0)
        for _ in range(200):
            found.observe(exact, 0.025)
        clock.now += 3600
        assert found.seconds(exact) == pytest.approx(0.025, rel=0.01)
