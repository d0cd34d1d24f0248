"""A model's first runs: whether it answers as its manifest says, and how long it takes here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from export.bundle import BundleError
from models.tasks import Task
from service.backends.backend import PIXELS, Call, Sample, Step
from service.catalog import Model
from service.levels import Selector
from service.scheduler import Done, Lane, Outcome
from service.work import Size

# For each level: rounds that count, after one that does not, and their seconds.
_ROUNDS = 5
_PATIENCE = 1.0
# Tokens of a short text.
_SHORT = 8

# Runs a sample on every worker at once, with slots or without.
Run = Callable[[Lane, Sample, bool], list[Outcome | None]]


class Times(NamedTuple):
    """Seconds on a machine at rest, while every worker runs.

    Attributes:
        runs: of one image, with its text where there is one, by FLOPs.
        embedding: of an image that several texts share.
    """

    runs: dict[int, float]
    embedding: float


def times(model: Model, run: Run) -> Times:
    """Run every task once, and every level often enough to time it; with texts, also on short ones.

    Raises:
        BundleError: it does not run, or its outputs are not those of its labels.
    """
    for task in model.tasks:
        _check(model, task, run)
    task = next(iter(model.tasks))
    found: dict[int, float] = {}
    for size in _sizes(model):
        for name in model.levels.levels:
            choice = model.levels.choose(Selector(level=name), task)
            fit = model.levels.fit(choice, size)
            if fit.work.flops not in found:  # two levels of one plan are timed once
                lane, sample = _input(model, task, "answer", fit.plan, size)
                seconds = _time(model, lane, sample, run)
                found[fit.work.flops] = seconds / len(lane.call.plans)
    embedding = 0.0
    if model.levels.nominal is not None:
        lane, sample = _input(model, task, "embed", (), None)
        embedding = _time(model, lane, sample, run)
    return Times(found, embedding)


def plan_ahead(model: Model) -> None:
    """Find the plans for texts of every length, so that no request has to: a search takes tens of
    milliseconds, and the first request of a length would do it in the event loop.
    """
    task = next(iter(model.tasks))
    model.levels.choose(Selector(reduction=1.0), task)  # a named level needs no search
    nominal = model.levels.nominal
    if nominal is None:
        return
    for name in model.levels.levels:
        choice = model.levels.choose(Selector(level=name), task)
        for text in range(1, nominal.text):
            model.levels.fit(choice, nominal._replace(text=text))


def _sizes(model: Model) -> list[Size | None]:
    nominal = model.levels.nominal
    if nominal is None or nominal.text <= _SHORT:
        return [nominal]
    return [nominal, nominal._replace(text=_SHORT)]


def _input(
    model: Model, task: Task, step: Step, plan: tuple[int, ...], size: Size | None
) -> tuple[Lane, Sample]:
    noise = np.random.default_rng(0)
    shape = model.manifest.preprocess.size
    images = 2 if task == "reason" and step != "embed" else 1
    sample: dict[str, npt.NDArray[Any]] = {
        name: noise.integers(0, 256, (*shape, 3), dtype=np.uint8) for name in PIXELS[:images]
    }
    if size is not None:
        sample["input_ids"] = noise.integers(0, model.text.vocabulary, size.text)
    plans = () if step == "embed" else (plan,) * images
    return Lane(model.backend, Call(step, task, plans, (shape,) * images)), sample


def _time(model: Model, lane: Lane, sample: Sample, run: Run) -> float:
    """Median seconds."""
    runs: list[float] = []
    begun = time.perf_counter()
    for turn in range(1 + _ROUNDS):
        # The first round also sees what slots cost in memory.
        found = run(lane, sample, turn == 0)
        if turn:
            runs += [_done(model, outcome).ran for outcome in found]
        if runs and time.perf_counter() - begun > _PATIENCE:
            break
    return statistics.median(runs)


def _check(model: Model, task: Task, run: Run) -> None:
    """Whether a task answers, in as many numbers as it has labels."""
    choice = model.levels.choose(Selector(), task)
    lane, sample = _input(model, task, "answer", choice.plan, model.levels.nominal)
    expected = len(model.labels(task)) or 1
    for outcome in run(lane, sample, True):
        output = _done(model, outcome).output
        classes = output["logits"].shape[-1]
        if classes != expected:
            raise BundleError(
                f"{model.bundle.folder} has {classes} outputs and {expected} labels for {task}"
            )
        tokens = len(output["image_slots"]) if "image_slots" in output else None
        nominal = model.levels.nominal
        if nominal is not None and tokens != nominal.image:
            raise BundleError(
                f"{model.bundle.folder} makes {tokens} tokens of an image, and says {nominal.image}"
            )


def _done(model: Model, outcome: Outcome | None) -> Done:
    if not isinstance(outcome, Done):
        raise BundleError(f"{model.bundle.folder} does not run; the log above says why")
    return outcome
