"""A model's first runs: whether it answers as its manifest says, and how long it takes here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from tokenfold.bundle.bundle import BundleError
from tokenfold.bundle.tasks import Task
from tokenfold.service.scheduling.backends import noise
from tokenfold.service.scheduling.backends.backend import Call, Sample, Step
from tokenfold.service.scheduling.catalog import Model
from tokenfold.service.scheduling.costs import Times
from tokenfold.service.scheduling.levels import Selector
from tokenfold.service.scheduling.queues import Lane
from tokenfold.service.scheduling.scheduler import Done, Outcome
from tokenfold.service.scheduling.work import Size, Work

# For each level, after a round that does not count, and for full batches: rounds at most, and
# their seconds.
_ROUNDS = 5
_PATIENCE = 1.0
# More than any device takes at once.
_ENDLESS = 1 << 20
# A device whose runs are batches is full of work with so many of the largest for each that it has
# on its way.
_FULL = 2

# Runs a sample so many times, with slots or without, as under load.
RunMany = Callable[[Lane, Sample, bool, int], list[Outcome | None]]
_Run = Callable[[Lane, Sample, bool], list[Outcome | None]]


def times(model: Model, run_many: RunMany, workers: int) -> Times:
    """Run every task once, and every level often enough to time it; texts also as short ones.

    Args:
        workers: how many run beside each other, where a run is one item.

    Raises:
        BundleError: it does not run, or its outputs are not those of its labels.
    """
    together = workers if model.backend.max_concurrent_runs is None else 1

    def run(lane: Lane, sample: Sample, slots: bool) -> list[Outcome | None]:
        return run_many(lane, sample, slots, together)

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
    return Times(found, embedding, _reading(model, run), _share(model, task, run_many))


def _share(model: Model, task: Task, run_many: RunMany) -> float:
    """See `Times`."""
    max_concurrent_runs = model.backend.max_concurrent_runs
    if max_concurrent_runs is None:
        return 1.0
    choice = model.levels.choose(Selector(), task)
    lane, sample = _input(model, task, "answer", choice.plan, model.levels.nominal)

    def run(lane: Lane, sample: Sample, slots: bool) -> list[Outcome | None]:
        return run_many(lane, sample, slots, 1)

    alone = _time(model, lane, sample, run)
    items = _FULL * max_concurrent_runs * model.backend.batch_size_for(lane.call, _ENDLESS)
    rounds: list[float] = []
    started = time.perf_counter()
    while len(rounds) < _ROUNDS and time.perf_counter() - started < _PATIENCE:
        begun = time.perf_counter()
        done = [_done(model, outcome) for outcome in run_many(lane, sample, False, items)]
        rounds.append((max(one.ended for one in done) - begun) / len(done))
    return min(1.0, statistics.median(rounds) / alone)


def _reading(model: Model, run: _Run) -> dict[int, float]:
    """Seconds of texts by themselves, by FLOPs; none where there are no such."""
    if model.manifest.kind != "dual":
        return {}
    found = {}
    for tokens in noise.lengths(model.manifest):
        lane, sample = _text(model, tokens)
        flops = Work.of_text(model.manifest.workload, tokens).flops
        found[flops] = _time(model, lane, sample, run)
    return found


def _text(model: Model, tokens: int) -> tuple[Lane, Sample]:
    sample = noise.sample(model.manifest, images=0, text=tokens, vocabulary=model.text.vocabulary)
    return Lane(model.backend, Call("read", "embed", (), ())), sample


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
    if nominal is None or nominal.text <= noise.SHORT:
        return [nominal]
    return [nominal, nominal._replace(text=noise.SHORT)]


def _input(
    model: Model, task: Task, step: Step, plan: tuple[int, ...], size: Size | None
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


def _time(model: Model, lane: Lane, sample: Sample, run: _Run) -> float:
    """Median seconds."""
    runs: list[float] = []
    begun = time.perf_counter()
    for turn in range(1 + _ROUNDS):
        # The first round also sees what slots cost in memory.
        found = run(lane, sample, turn == 0)
        if turn:
            done = [_done(model, outcome) for outcome in found]
            runs += [one.ran / one.batch_size for one in done]
        if runs and time.perf_counter() - begun > _PATIENCE:
            break
    return statistics.median(runs)


def _check(model: Model, task: Task, run: _Run) -> None:
    """Whether a task answers, in as many numbers as it has labels."""
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


def _check_vectors(
    model: Model, width: int, asked: Sequence[tuple[Lane, Sample]], run: _Run
) -> None:
    """Whether images and texts become vectors that can be compared."""
    for lane, sample in asked:
        for outcome in run(lane, sample, True):
            found = len(_done(model, outcome).output["vector"])
            if found != width:
                raise BundleError(
                    f"{model.bundle.folder} makes vectors of {found} numbers, and says {width}"
                )


def _done(model: Model, outcome: Outcome | None) -> Done:
    if not isinstance(outcome, Done):
        raise BundleError(f"{model.bundle.folder} does not run; the log above says why")
    return outcome
