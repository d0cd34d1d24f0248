"""Tests of the level selection: by name, reduction, latency budget and accuracy budget."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfold.bundle.manifest import JOINT, TOKENIZER, VISION, Level, Manifest, StoredFile
from tokenfold.bundle.pair_workload import ViltWorkload
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.profile import LevelProfile, Profile, Quality
from tokenfold.bundle.schedule import flops_ratio, plan_for
from tokenfold.bundle.tasks import Task
from tokenfold.bundle.workload import BaseWorkload, Workload
from tokenfold.inference.errors import (
    AccuracyBudget,
    InvalidRequest,
    LatencyBudget,
    NoProfile,
    TooSlowNow,
    TwoSelectors,
    UnknownLevel,
)
from tokenfold.inference.levels import Levels, Selector
from tokenfold.inference.work import Size, Work, Works
from tokenfold.service.scheduling.costs import Costs, Times

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
        # In reverse order: `Levels` sorts them.
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
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Measured(Levels):
    """Levels whose runs have known durations."""

    def __init__(
        self, manifest: Manifest, profile: Profile | None, costs: Costs, default: str | None = None
    ) -> None:
        self.costs = costs
        super().__init__(manifest, profile, default=default, seconds=costs.seconds)


def levels(
    accuracy: dict[str, float] | None = None,
    default: str | None = None,
    clock: Clock | None = None,
) -> Measured:
    # By default the clock stands still.
    costs = Costs(clock=clock or Clock())
    measured_levels = Measured(
        manifest(), None if accuracy is None else profile(accuracy), costs, default=default
    )
    known = {
        VIT_S.flops(level.plan): MILLISECONDS[name] / 1000
        for name, level in measured_levels.levels.items()
    }
    costs.learn(Times(known))
    return measured_levels


def works(reduction: float, workload: BaseWorkload = VIT_S) -> Works:
    return (Work.of(workload, plan_for(workload, reduction)),)


def test_a_level_is_chosen_by_name_or_by_default() -> None:
    assert levels().choose(Selector(level="fast"), "classify").level == "fast"
    assert levels().choose(Selector(), "classify").level == "balanced"
    assert levels(default="high").choose(Selector(), "classify").level == "high"


def test_levels_are_sorted_by_reduction() -> None:
    assert list(levels().levels) == list(NAMES)


def test_the_error_for_an_unknown_level_lists_the_known_ones() -> None:
    with pytest.raises(UnknownLevel, match=r"'turbo'.*exact, high, balanced, fast, fastest"):
        levels().choose(Selector(level="turbo"), "classify")
    with pytest.raises(UnknownLevel, match="'turbo'"):
        levels(default="turbo")


def test_two_selectors_are_refused() -> None:
    with pytest.raises(TwoSelectors, match="reduction and min_accuracy"):
        levels().choose(Selector(reduction=0.1, min_accuracy=0.0), "classify")


@given(st.floats(0, 1))
def test_any_reduction_gets_the_closest_plan(reduction: float) -> None:
    choice = levels().choose(Selector(reduction=reduction), "classify")
    assert choice.plan == plan_for(VIT_S, reduction)
    assert choice.requested == reduction
    assert choice.work.ratio == flops_ratio(VIT_S, choice.plan)
    assert (choice.work.tokens_in, choice.work.tokens_out) == (197, VIT_S.widths(choice.plan)[-1])
    assert choice.level in {*NAMES, "custom"}


def test_a_reduction_equal_to_a_levels_is_named_after_the_level() -> None:
    for name, share in NAMES.items():
        assert levels().choose(Selector(reduction=share), "classify").level == name
    assert levels().choose(Selector(reduction=0.31), "classify").level == "custom"


@pytest.mark.parametrize("reduction", [-0.1, 1.1, float("nan"), float("inf")])
def test_reductions_outside_0_to_1_are_refused(reduction: float) -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        levels().choose(Selector(reduction=reduction), "classify")


@pytest.mark.parametrize(
    ("budget", "expected"), [(1000, "exact"), (50.1, "exact"), (49, "high"), (15.1, "fastest")]
)
def test_a_latency_budget_selects_the_least_reduced_level_that_fits(
    budget: float, expected: str
) -> None:
    assert levels().choose(Selector(max_latency_ms=budget), "classify").level == expected


def test_a_latency_budget_selects_the_most_accurate_level_that_fits() -> None:
    assert levels(ACCURACY).choose(Selector(max_latency_ms=1000), "classify").level == "high"


def test_a_latency_budget_includes_the_queue_and_all_runs() -> None:
    candidates = levels()
    assert candidates.choose(Selector(max_latency_ms=60), "classify", wait=0.02).level == "high"
    assert (
        candidates.choose(
            Selector(max_latency_ms=60),
            "classify",
            duration=lambda choice: 2 * candidates.costs.seconds((choice.work,)),
        ).level
        == "balanced"
    )


def test_a_latency_budget_below_the_fastest_level_is_refused() -> None:
    with pytest.raises(LatencyBudget, match=r"fastest level, fastest, takes about 15\.0 ms"):
        levels().choose(Selector(max_latency_ms=10), "classify")


def test_a_latency_budget_exceeded_by_the_queue_asks_to_retry() -> None:
    with pytest.raises(TooSlowNow, match="1200 ms in the queue") as caught:
        levels().choose(Selector(max_latency_ms=60), "classify", wait=1.2)
    assert caught.value.retry_after == 2


@pytest.mark.parametrize(
    ("min_accuracy", "expected"),
    [(0.8, "high"), (0.79, "balanced"), (0.5, "fastest"), (0, "fastest")],
)
def test_an_accuracy_budget_selects_the_fastest_level_that_reaches_it(
    min_accuracy: float, expected: str
) -> None:
    assert (
        levels(ACCURACY).choose(Selector(min_accuracy=min_accuracy), "classify").level == expected
    )


def test_a_latency_budget_is_accepted_again_after_a_slow_phase() -> None:
    clock = Clock()
    candidates = levels(clock=clock)
    for _ in range(200):
        candidates.costs.observe(works(0.0), 60.0)
    with pytest.raises(LatencyBudget):
        candidates.choose(Selector(max_latency_ms=60), "classify")
    # Every budget is refused, so no run can show that the machine is fast again.
    clock.now += 60
    assert candidates.choose(Selector(max_latency_ms=60), "classify").level == "exact"


def test_an_accuracy_budget_above_the_best_level_is_refused() -> None:
    with pytest.raises(AccuracyBudget, match=r"high, was measured at 0\.8050"):
        levels(ACCURACY).choose(Selector(min_accuracy=0.9), "classify")


def test_an_accuracy_budget_needs_a_profile() -> None:
    with pytest.raises(NoProfile, match="vit"):
        levels().choose(Selector(min_accuracy=0.1), "classify")


def test_a_profile_may_cover_only_some_levels() -> None:
    candidates = levels({"fast": 0.9})
    assert candidates.choose(Selector(min_accuracy=0.5), "classify").level == "fast"
    # The accuracy of the others is unknown, so the least reduced level counts as the best.
    assert candidates.choose(Selector(max_latency_ms=1000), "classify").level == "exact"


def test_a_network_without_reduction_has_one_plan() -> None:
    workload = VIT_S.model_copy(update={"method": "none"})
    candidates = Levels(manifest(workload), None)
    assert candidates.choose(Selector(reduction=0.7), "classify").plan == (0,) * 12
    assert candidates.choose(Selector(reduction=0.7), "classify").level == "exact"


VILT = ViltWorkload(
    method="pumer", text=40, image=145, most_text=40, layers=(2, 5, 8), depth=12, dim=768,
    mlp_dim=3072, metric_dim=64, stem=2_359_296, head=1_000_000,
)  # fmt: skip


def pairs(quality: Mapping[str, Mapping[Task, float]] | None = None) -> Measured:
    """Return levels of a network with texts, whose runs take one second per GFLOP."""
    plans = {name: plan_for(VILT, share) for name, share in NAMES.items()}
    fields = manifest().model_dump() | {
        "workload": VILT,
        "tasks": {"vqa": ("a", "b"), "match": ()},
        "text": {"most_tokens": 40},
        "levels": {
            name: Level(
                reduction=NAMES[name],
                plan=plan,
                flops_ratio=flops_ratio(VILT, plan),
                tokens_out=VILT.widths(plan)[-1],
            )
            for name, plan in plans.items()
        },
        "files": {
            name: StoredFile(sha256="0" * 64, bytes=1) for name in (VISION, JOINT, TOKENIZER)
        },
    }
    measured = Profile(
        measured=date(2026, 1, 1),
        machine="none",
        runtime="none",
        levels={
            name: LevelProfile(
                quality={
                    task: Quality(metric="accuracy", value=value, low=0, high=1, samples=10)
                    for task, value in values.items()
                }
            )
            for name, values in (quality or {}).items()
        },
    )
    pair_levels = Measured(Manifest.model_validate(fields), measured, Costs(clock=Clock()))
    pair_levels.costs.learn(
        Times({flops: flops / 1e9 for flops in map(VILT.flops, plans.values())}, embedding=0.5)
    )
    return pair_levels


class TestTexts:
    @given(st.floats(0, 1), st.integers(3, 40), st.integers(2, 241))
    def test_each_text_length_has_its_own_plan(
        self, reduction: float, text: int, image: int
    ) -> None:
        candidates = pairs()
        choice = candidates.choose(Selector(reduction=reduction), "vqa")
        sized = VILT.sized(text=text, image=image)
        fit = candidates.fit(choice, Size(text, image))
        assert fit.plan == plan_for(sized, reduction)
        assert fit.work.ratio == flops_ratio(sized, fit.plan)
        assert fit.work.tokens_in == text + image
        assert choice.plan == plan_for(VILT, reduction)

    def test_a_level_has_the_bundles_plan_at_the_nominal_size(self) -> None:
        candidates = pairs()
        for name, level in candidates.levels.items():
            choice = candidates.choose(Selector(level=name), "vqa")
            assert candidates.fit(choice, Size(40, 145)).plan == level.plan == choice.plan
            assert candidates.fit(choice, Size(12, 145)).work.flops < choice.work.flops

    def test_an_accuracy_budget_uses_the_accuracy_of_the_task(self) -> None:
        candidates = pairs(
            {"exact": {"vqa": 0.9, "match": 0.8}, "fast": {"vqa": 0.85, "match": 0.5}}
        )
        assert candidates.choose(Selector(min_accuracy=0.8), "vqa").level == "fast"
        assert candidates.choose(Selector(min_accuracy=0.8), "match").level == "exact"
        with pytest.raises(AccuracyBudget):
            candidates.choose(Selector(min_accuracy=0.85), "match")
        with pytest.raises(NoProfile, match="vit at match"):
            pairs({"exact": {"vqa": 0.9}}).choose(Selector(min_accuracy=0.1), "match")


def test_only_dual_encoders_have_a_cost_of_texts_without_images() -> None:
    with pytest.raises(TypeError, match="dual encoders"):
        Work.of_text(VIT_S, 8)
