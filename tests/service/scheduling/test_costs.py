"""Tests of the expected durations of runs: by FLOPs, corrected by every run."""

from __future__ import annotations

import pytest

from tests.inference.test_levels import VILT, Clock, levels, pairs, works
from tests.service.standin_dual import WORKLOAD as DUAL
from tokenfold.bundle.schedule import plan_for
from tokenfold.inference.work import Work
from tokenfold.service.scheduling.costs import Costs, Times


class TestSteps:
    def test_durations_are_proportional_to_flops(self) -> None:
        pair_levels = pairs()
        short, large = VILT.sized(text=5), VILT.sized(image=241)
        for workload in (VILT, short, large):
            expected = workload.flops(plan_for(workload, 0.3)) / 1e9
            assert pair_levels.costs.seconds(works(0.3, workload)) == pytest.approx(expected)

    def test_each_step_has_its_own_duration(self) -> None:
        costs, (work,) = pairs().costs, works(0.0, VILT)
        once = costs.seconds((work,))
        assert costs.seconds((work, work)) == pytest.approx(2 * once)
        assert costs.seconds((), "embed") == 0.5
        assert costs.seconds((work,), "fuse") == pytest.approx(once - 0.5)
        assert costs.seconds((work, work), "fuse") == pytest.approx(2 * (once - 0.5))
        for _ in range(200):
            costs.observe((), 1.0, "embed")
        assert costs.seconds((work,)) == pytest.approx(2 * once, rel=0.01)


class TestCosts:
    def test_durations_are_zero_before_the_warm_up(self) -> None:
        costs = Costs()
        costs.observe(works(0.5), 1.0)
        assert costs.seconds(works(0.5)) == 0.0

    def test_durations_between_levels_are_interpolated_by_flops(self) -> None:
        costs = levels().costs
        middle = costs.seconds(works(0.3))
        assert 0.030 < middle < 0.040
        assert costs.seconds(works(1.0)) == pytest.approx(0.015)

    def test_a_run_corrects_the_durations_of_every_level(self) -> None:
        costs = levels().costs
        exact, fast = works(0.0), works(0.55)
        for _ in range(200):
            costs.observe(exact, 0.1)
        assert costs.seconds(exact) == pytest.approx(0.1, rel=0.01)
        assert costs.seconds(fast) == pytest.approx(0.044, rel=0.01)
        for _ in range(200):
            costs.observe(fast, 0.022)
        assert costs.seconds(exact) == pytest.approx(0.05, rel=0.01)

    def test_a_single_stall_changes_durations_little(self) -> None:
        costs = levels().costs
        costs.observe(works(0.0), 60.0)
        assert costs.seconds(works(0.0)) < 0.08

    def test_a_slow_correction_decays_while_nothing_runs(self) -> None:
        clock = Clock()
        costs = levels(clock=clock).costs
        exact = works(0.0)
        for _ in range(200):
            costs.observe(exact, 0.25)
        assert costs.seconds(exact) == pytest.approx(0.25, rel=0.01)
        clock.now += 5
        assert costs.seconds(exact) == pytest.approx(0.15, rel=0.01)
        # The next run corrects the decayed duration.
        costs.observe(exact, 0.05)
        assert costs.seconds(exact) == pytest.approx(0.145, rel=0.01)
        clock.now += 3600
        assert costs.seconds(exact) == pytest.approx(0.05)

    def test_a_fast_correction_does_not_decay(self) -> None:
        # Otherwise a budget that was met before would be refused, and no run could correct that.
        clock = Clock()
        costs = levels(clock=clock).costs
        exact = works(0.0)
        for _ in range(200):
            costs.observe(exact, 0.025)
        clock.now += 3600
        assert costs.seconds(exact) == pytest.approx(0.025, rel=0.01)


def test_texts_without_images_have_their_own_durations() -> None:
    costs = Costs(clock=Clock())
    short, long = Work.of_text(DUAL, 8), Work.of_text(DUAL, 16)
    assert costs.seconds((short,), "read") == 0.0
    costs.learn(Times({short.flops: 1.0}, reading={short.flops: 0.2, long.flops: 0.4}))
    assert costs.seconds((short,), "read") == 0.2
    between = costs.seconds((Work.of_text(DUAL, 12),), "read")
    assert 0.2 < between < 0.4
    # The correction applies to the whole model.
    costs.observe((short,), 0.4, "read")
    assert costs.seconds((short,), "read") > 0.2
    assert costs.seconds((short,)) > 1.0


def test_a_batch_corrects_the_duration_of_one_item() -> None:
    clock, item = Clock(), works(0.0)
    costs = Costs(clock=clock)
    costs.learn(Times({item[0].flops: 1.0}, share=0.1))
    assert costs.share == 0.1
    # 1 s, and a tenth of that for each of the ten other items.
    for _ in range(100):
        clock.now += 2.0
        costs.observe(item, 2.0, items=11)
    assert costs.seconds(item) == pytest.approx(1.0)
    # Two runs in flight: each has waited for the one before it.
    for _ in range(100):
        clock.now += 2.0
        costs.observe(item, 4.0, items=11)
    assert costs.seconds(item) == pytest.approx(1.0)
    for _ in range(20):
        clock.now += 4.0
        costs.observe(item, 4.0, items=11)
    assert costs.seconds(item) > 1.1
    # Where batches gain nothing, a run takes as long as its items one after the other.
    costs.learn(Times({item[0].flops: 1.0}))
    for _ in range(100):
        costs.observe(item, 3.0, items=3)
    assert costs.seconds(item) == pytest.approx(1.0)
