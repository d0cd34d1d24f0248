"""Tests of the repeated timing of a model after its backend has changed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from tests.service import standin
from tests.service.second import Seconds
from tests.service.standin import bundle, serving
from tokenfold.service.app import create_app
from tokenfold.service.scheduling import timing, warmup
from tokenfold.service.scheduling.backends.kinds import CpuKind
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.costs import Times
from tokenfold.service.scheduling.scheduler import Scheduler
from tokenfold.service.scheduling.timing import Timing


class ChangingModel:
    """A stand-in for a model whose backend changes."""

    name = "other"

    def __init__(self, *kinds: str) -> None:
        self._kinds = list(kinds)
        self.backend = self
        self.learnt: list[Times] = []
        self.costs = self

    @property
    def kind(self) -> str:
        return self._kinds.pop(0) if len(self._kinds) > 1 else self._kinds[0]

    def learn(self, times: Times) -> None:
        self.learnt.append(times)


def test_times_measured_across_a_change_of_backend_are_discarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds: list[Times] = []

    def times(*_: Any) -> Times:
        rounds.append(Times({1: float(len(rounds))}))
        return rounds[-1]

    monkeypatch.setattr(warmup, "times", times)
    # The kind is read before and after each round.
    changing = cast(ServedModel, ChangingModel("first", "second", "second", "third", "third"))
    assert timing.measure(changing, lambda *_: [], 2) is rounds[2]
    assert len(rounds) == 3


def test_a_model_is_timed_again_while_it_serves(tmp_path: Path) -> None:
    bundle(tmp_path / "a")
    second = Seconds()
    app = create_app(standin.settings(tmp_path), kinds=[second.kind, CpuKind()])
    with serving(app):
        core = app.state.core
        (model,) = core.catalog
        runs_before = len(second.made[0].ran)
        model.costs.learn(Times({1: 1e6}))
        timer = Timing(core.scheduler, 512)
        timer.again(model)
        (thread,) = timer.threads
        thread.join(30)
        assert len(second.made[0].ran) > runs_before
        assert 0 < model.costs.seconds((model.levels.work(model.levels.levels["exact"].plan),)) < 10


def test_a_shutdown_ends_the_timing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = Scheduler(workers=1, limit=1)
    begun = threading.Event()

    def times(_: ServedModel, run_many: warmup.RunMany, __: int) -> Times:
        begun.set()
        scheduler.drain()
        run_many(cast(Any, None), {}, False, 1)
        raise AssertionError("a run was started after the shutdown")

    monkeypatch.setattr(warmup, "times", times)
    model = ChangingModel("first")
    timer = Timing(scheduler, 512)
    timer.again(cast(ServedModel, model))
    timer.threads[0].join(10)
    assert begun.is_set()
    assert not model.learnt
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_failed_timing_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def times(*_: Any) -> Times:
        raise OSError("no")

    monkeypatch.setattr(warmup, "times", times)
    model = ChangingModel("first")
    timer = Timing(Scheduler(workers=1, limit=1), 512)
    timer.again(cast(ServedModel, model))
    timer.threads[0].join(10)
    assert not model.learnt
    assert "other could not be timed again" in caplog.text
