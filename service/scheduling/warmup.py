"""Warm-up: check that a model answers as its manifest says, and time its runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from tokenfold.bundle.bundle import BundleError
from tokenfold.bundle.tasks import Task
from tokenfold.inference.backend import Call, Sample, Step
from tokenfold.inference.levels import Selector
from tokenfold.inference.work import Size, Work
from tokenfold.service.scheduling.backends import noise
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.costs import Times
from tokenfold.service.scheduling.queue import Lane
from tokenfold.service.scheduling.ticket import Outcome, RunOutput

# Timed rounds of each level, after one that does not count; the time after which no further round
# starts, in seconds.
_ROUNDS = 5
_PATIENCE = 1.0
# Waiting items, more than any device takes in one run.
_MANY = 1 << 20
# Batches of the largest size that keep a device busy, for each run that it may have in flight.
_BATCHES_IN_FLIGHT = 2

RunMany = Callable[[Lane, Sample, bool, int], list[Outcome | None]]
"""Runs a sample several times, as under load. Arguments: lane, sample, slots, number of runs."""
_Run = Callable[[Lane, Sample, bool], list[Outcome | None]]


def times(model: ServedModel, run_many: RunMany, workers: int) -> Times:
    """Run every task once, and time every level, for the longest and for short texts.

    Args:
        model: the model.
        run_many: runs a sample several times.
        workers: number of concurrent runs, where a run has one item.

    Raises:
        BundleError: the model does not run, or its outputs do not fit its labels.
    """
    together = workers if model.backend.max_concurrent_runs is None else 1

    def run(lane: Lane, sample: Sample, slots: bool) -> list[Outcome | None]:
        return run_many(lane, sample, slots, together)

    for task in model.tasks:
        _check(model, task, run)
    task = next(iter(model.tasks))
    durations: dict[int, float] = {}
    for size in _sizes(model):
        for name in model.levels.levels:
            choice = model.levels.choose(Selector(level=name), task)
            fit = model.levels.fit(choice, size)
            if fit.work.flops not in durations:  # two levels of one plan are timed once
                lane, sample = _input(model, task, "answer", fit.plan, size)
                seconds = _time(model, lane, sample, run)
                durations[fit.work.flops] = seconds / len(lane.call.plans)
    embedding = 0.0
    if model.levels.nominal is not None:
        lane, sample = _input(model, task, "embed", (), None)
        embedding = _time(model, lane, sample, run)
    return Times(durations, embedding, _reading(model, run), _share(model, task, run_many))


def _share(model: ServedModel, task: Task, run_many: RunMany) -> float:
    """Return `Times.share`."""
    max_concurrent_runs = model.backend.max_concurrent_runs
    if max_concurrent_runs is None:
        return 1.0
    choice = model.levels.choose(Selector(), task)
    lane, sample = _input(model, task, "answer", choice.plan, model.levels.nominal)

    def run(lane: Lane, sample: Sample, slots: bool) -> list[Outcome | None]:
        return run_many(lane, sample, slots, 1)

    alone = _time(model, lane, sample, run)
    items = (
        _BATCHES_IN_FLIGHT * max_concurrent_runs * model.backend.batch_size_for(lane.call, _MANY)
    )
    rounds: list[float] = []
    started = time.perf_counter()
    while len(rounds) < _ROUNDS and time.perf_counter() - started < _PATIENCE:
        begun = time.perf_counter()
        outputs = [_output(model, outcome) for outcome in run_many(lane, sample, False, items)]
        rounds.append((max(output.ended for output in outputs) - begun) / len(outputs))
    return min(1.0, statistics.median(rounds) / alone)


def _reading(model: ServedModel, run: _Run) -> dict[int, float]:
    """Return the durations of texts by themselves, by FLOPs; only dual encoders have them."""
    if model.manifest.kind != "dual":
        return {}
    durations = {}
    for tokens in noise.lengths(model.manifest):
        lane, sample = _text(model, tokens)
        flops = Work.of_text(model.manifest.workload, tokens).flops
        durations[flops] = _time(model, lane, sample, run)
    return durations


def _text(model: ServedModel, tokens: int) -> tuple[Lane, Sample]:
    sample = noise.sample(model.manifest, images=0, text=tokens, vocabulary=model.text.vocabulary)
    return Lane(model.backend, Call("read", "embed", (), ())), sample


def plan_ahead(model: ServedModel) -> None:
    """Find the plans for texts of every length before the first request.

    A search takes tens of milliseconds, which the first request of a length would spend in the
    event loop.
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


def _sizes(model: ServedModel) -> list[Size | None]:
    nominal = model.levels.nominal
    if nominal is None or nominal.text <= noise.SHORT:
        return [nominal]
    return [nominal, nominal._replace(text=noise.SHORT)]


def _input(
    model: ServedModel, task: Task, step: Step, plan: tuple[int, ...], size: Size | None
) -> tuple[Lane, Sample]:
    images = noise.images_of(task, step)
    sample = noise.sample(
        model.manifest,
        images=images,
        text=None if size is None else size.text,
        vocabulary=0 if size is None else model.text.vocabulary,
    )
    plans = () if step == "embed" else (plan,) * images
    shapes = (model.manifest.preprocess.size,) * images
    return Lane(model.backend, Call(step, task, plans, shapes)), sample


def _time(model: ServedModel, lane: Lane, sample: Sample, run: _Run) -> float:
    """Return the median duration of a run per item, in seconds."""
    runs: list[float] = []
    begun = time.perf_counter()
    for turn in range(1 + _ROUNDS):
        # The first round includes slots, so that their memory is allocated.
        outcomes = run(lane, sample, turn == 0)
        if turn:
            outputs = [_output(model, outcome) for outcome in outcomes]
            runs += [output.seconds / output.batch_size for output in outputs]
        if runs and time.perf_counter() - begun > _PATIENCE:
            break
    return statistics.median(runs)


def _check(model: ServedModel, task: Task, run: _Run) -> None:
    """Check that a task runs and has as many outputs as labels; raise BundleError otherwise."""
    choice = model.levels.choose(Selector(), task)
    lane, sample = _input(model, task, "answer", choice.plan, model.levels.nominal)
    similarity = model.manifest.similarity
    if similarity is not None:
        _check_vectors(
            model,
            similarity.width,
            [(lane, sample), _text(model, max(noise.lengths(model.manifest)))],
            run,
        )
        return
    expected = len(model.labels(task)) or 1
    for outcome in run(lane, sample, True):
        output = _output(model, outcome).output
        classes = output["logits"].shape[-1]
        if classes != expected:
            raise BundleError(
                f"{model.bundle.folder} has {classes} outputs and {expected} labels for {task}"
            )
        tokens = len(output["image_slots"]) if "image_slots" in output else None
        nominal = model.levels.nominal
        if nominal is not None and tokens != nominal.image:
            raise BundleError(
                f"{model.bundle.folder} makes {tokens} tokens of an image; its manifest says "
                f"{nominal.image}"
            )


def _check_vectors(
    model: ServedModel, width: int, inputs: Sequence[tuple[Lane, Sample]], run: _Run
) -> None:
    """Check that images and texts have vectors of the same width; raise BundleError otherwise."""
    for lane, sample in inputs:
        for outcome in run(lane, sample, True):
            length = len(_output(model, outcome).output["vector"])
            if length != width:
                raise BundleError(
                    f"{model.bundle.folder} makes vectors of {length} numbers; its manifest says "
                    f"{width}"
                )


def _output(model: ServedModel, outcome: Outcome | None) -> RunOutput:
    if not isinstance(outcome, RunOutput):
        raise BundleError(f"{model.bundle.folder} does not run; the log above says why")
    return outcome
