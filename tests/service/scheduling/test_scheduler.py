"""Tests of the scheduler: order, bounds, batches, cancellation, failures and drain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.service.scheduling.backends.stub_kind import StubKind
from tests.service.standin import WORKLOAD, bundle, settings, until
from tokenfold.bundle.schedule import plan_for
from tokenfold.inference import sessions
from tokenfold.inference.backend import Backend, Call, Sample
from tokenfold.inference.errors import ImageError, InternalError, TooSlowNow
from tokenfold.inference.work import Work
from tokenfold.service.core import Core
from tokenfold.service.errors import Draining, QueueFull, WorkerDied
from tokenfold.service.scheduling.costs import Costs, Times
from tokenfold.service.scheduling.queue import Lane
from tokenfold.service.scheduling.scheduler import Scheduler
from tokenfold.service.scheduling.ticket import Job, Outcome, RunOutput, Ticket

FOREVER = float("inf")


def call(plan: int = 1) -> Call:
    """Return a call; calls of different plans never share a run."""
    return Call("answer", "classify", ((plan,),), ((1, 1),))


class Fake:
    """A backend whose runs wait for `gate` and are recorded in `ran`."""

    native = False

    def __init__(self, max_batch: int = 1, max_concurrent_runs: int | None = None) -> None:
        self._max_batch = max_batch
        self.max_concurrent_runs = max_concurrent_runs
        self.gate = threading.Event()
        self.ran: list[tuple[int, list[int]]] = []
        self.running = 0
        self.fails: dict[int, BaseException] = {}

    def batch_size_for(self, _: Call, waiting: int, /) -> int:
        return min(waiting, self._max_batch)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        numbers = [int(sample["number"]) for sample in samples]
        self.running += 1
        self.gate.wait(10)
        self.running -= 1
        self.ran.append((call.plans[0][0], numbers))
        for number in numbers:
            if number in self.fails:
                raise self.fails[number]
        return [{**sample, **({"slots": np.zeros(1)} if slots else {})} for sample in samples]

    def close(self) -> None:
        """Do nothing."""


class Caller:
    """Submits requests to a scheduler, and collects the finished ones."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.finished: list[Ticket] = []

    def ask(
        self,
        backend: Fake,
        *numbers: int,
        plan: int = 1,
        cost: float = 0.01,
        within: float = FOREVER,
        submit: bool = True,
        priority: int = 0,
    ) -> Ticket:
        holder: list[Ticket] = []
        ticket = self.scheduler.admit(
            [cost] * len(numbers),
            within=within,
            done=lambda: self.finished.append(holder[0]),
            priority=priority,
        )
        holder.append(ticket)
        if submit:
            for index, number in enumerate(numbers):
                self.submit(ticket, index, backend, number, plan=plan)
        return ticket

    def submit(
        self, ticket: Ticket, index: int, backend: Fake, number: int, *, plan: int = 1, **job: Any
    ) -> None:
        sample = {"number": np.asarray(number)}
        lane = Lane(backend, call(plan))
        self.scheduler.submit(Job(ticket=ticket, index=index, lane=lane, sample=sample, **job))

    def wait(self, *tickets: Ticket) -> None:
        until(lambda: all(ticket in self.finished for ticket in tickets))


Start = Callable[..., Caller]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Scheduler] = []

    def make(workers: int = 1, limit: int = 100) -> Caller:
        scheduler = Scheduler(workers=workers, limit=limit)
        scheduler.start()
        started.append(scheduler)
        return Caller(scheduler)

    yield make
    for scheduler in started:
        scheduler.stop()
        assert scheduler.pending == 0


def busy(caller: Caller, backend: Fake) -> Ticket:
    """Occupy a worker."""
    before = backend.running
    ticket = caller.ask(backend, -1)
    until(lambda: backend.running > before)
    return ticket


def test_a_request_gets_the_outcome_of_each_run(start: Start) -> None:
    caller, backend = start(), Fake()
    backend.gate.set()
    ticket = caller.ask(backend, 7, 8)
    caller.wait(ticket)
    assert [
        int(outcome.output["number"])
        for outcome in ticket.outcomes
        if isinstance(outcome, RunOutput)
    ] == [7, 8]
    assert all(
        outcome.batch_size == 1 and outcome.seconds >= 0
        for outcome in ticket.outcomes
        if isinstance(outcome, RunOutput)
    )


def test_requests_are_served_in_order_of_arrival_across_queues(start: Start) -> None:
    caller, backend = start(), Fake()
    tickets = [busy(caller, backend)]
    tickets += [caller.ask(backend, i, plan=i % 3) for i in range(9)]
    backend.gate.set()
    caller.wait(*tickets)
    assert [numbers[0] for _, numbers in backend.ran] == [-1, *range(9)]


def test_batches_form_while_the_device_is_busy(start: Start) -> None:
    caller, backend = start(), Fake(max_batch=3)
    tickets = [busy(caller, backend)]
    tickets += [caller.ask(backend, i, plan=i % 2) for i in range(8)]
    backend.gate.set()
    caller.wait(*tickets)
    assert backend.ran == [
        (1, [-1]),
        (0, [0, 2, 4]),
        (1, [1, 3, 5]),
        (0, [6]),
        (1, [7]),
    ]
    last = tickets[-1].outcomes[0]
    assert isinstance(last, RunOutput)
    assert last.batch_size == 1
    middle = tickets[3].outcomes[0]
    assert isinstance(middle, RunOutput)
    assert middle.batch_size == 3


def test_workers_run_concurrently(start: Start) -> None:
    caller, backend = start(workers=3), Fake()
    ticket = caller.ask(backend, 1, 2, 3, 4)
    until(lambda: backend.running == 3)
    backend.gate.set()
    caller.wait(ticket)


def test_a_device_has_at_most_its_maximum_of_concurrent_runs(start: Start) -> None:
    caller, gpu, cpu = start(workers=4), Fake(max_batch=8, max_concurrent_runs=2), Fake()
    tickets = [busy(caller, gpu), busy(caller, gpu)]
    tickets += [caller.ask(gpu, number) for number in range(6)]
    # The GPU is passed over, and does not delay the CPU.
    cpu_ticket = caller.ask(cpu, 1)
    until(lambda: cpu.running == 1)
    cpu.gate.set()
    caller.wait(cpu_ticket)
    assert gpu.running == 2
    assert caller.scheduler.depth == 6
    gpu.gate.set()
    caller.wait(*tickets)
    assert sorted(gpu.ran) == [(1, [-1]), (1, [-1]), (1, [0, 1, 2, 3, 4, 5])]


def test_every_worker_wakes_when_a_device_allows_more_runs(start: Start) -> None:
    caller, backend = start(workers=4), Fake(max_concurrent_runs=1)
    tickets = [busy(caller, backend)]
    tickets += [caller.ask(backend, number) for number in range(4)]
    # This happens when a GPU is replaced by the CPU.
    backend.max_concurrent_runs = None
    tickets.append(caller.ask(backend, 4))
    until(lambda: backend.running == 4)
    backend.gate.set()
    caller.wait(*tickets)


def test_stopping_runs_what_waits_for_a_device() -> None:
    scheduler = Scheduler(workers=4, limit=9)
    scheduler.start()
    caller, backend = Caller(scheduler), Fake(max_concurrent_runs=1)
    tickets = [busy(caller, backend), caller.ask(backend, 1, 2)]
    threading.Timer(0.1, backend.gate.set).start()
    begun = time.monotonic()
    assert scheduler.stop()
    assert time.monotonic() - begun < 4
    assert tickets == caller.finished


def test_the_wait_counts_the_share_of_a_run(start: Start) -> None:
    caller, backend = start(), Fake()
    first = busy(caller, backend)
    ticket = caller.scheduler.admit([1.0, 3.0], within=FOREVER, done=lambda: None, share=0.25)
    assert caller.scheduler.wait == pytest.approx(1.005)
    # The longest run still takes its whole duration.
    with pytest.raises(TooSlowNow):
        caller.scheduler.admit([3.0], within=4.0, done=lambda: None, share=0.25)
    caller.scheduler.cancel(ticket)
    backend.gate.set()
    caller.wait(first)


def test_a_full_queue_refuses_requests(start: Start) -> None:
    caller, backend = start(limit=4), Fake()
    first = busy(caller, backend)
    waiting = caller.ask(backend, 1, 2, 3, cost=2.5)
    with pytest.raises(QueueFull, match="3 items wait, and at most 4") as caught:
        caller.ask(backend, 4, 5)
    # Runs of 3 x 2.5 s wait, and half of the running 0.01 s is left: rounded up, 8 s.
    assert caught.value.retry_after == 8
    one_more = caller.ask(backend, 4)
    backend.gate.set()
    caller.wait(first, waiting, one_more)


def test_places_are_taken_before_images_are_decoded(start: Start) -> None:
    caller, backend = start(limit=2), Fake()
    backend.gate.set()
    ticket = caller.ask(backend, 1, 2, submit=False)
    assert caller.scheduler.depth == 2
    with pytest.raises(QueueFull):
        caller.ask(backend, 3)
    caller.scheduler.fail(ticket, 0, ImageError("bad"))
    assert caller.scheduler.depth == 1
    caller.submit(ticket, 1, backend, 2, slots=True)
    caller.wait(ticket)
    assert isinstance(ticket.outcomes[0], ImageError)
    assert isinstance(ticket.outcomes[1], RunOutput)
    assert "slots" in ticket.outcomes[1].output


def test_a_deadline_that_cannot_be_met_is_refused_at_once(start: Start) -> None:
    caller, backend = start(), Fake()
    tickets = [busy(caller, backend), caller.ask(backend, 1, 2, cost=2.0)]
    with pytest.raises(TooSlowNow, match=r"about 4\.0 s") as caught:
        caller.ask(backend, 3, within=3.0)
    assert caught.value.retry_after == 5
    backend.gate.set()
    caller.wait(*tickets)


def test_the_wait_is_zero_while_a_worker_is_free(start: Start) -> None:
    caller, backend = start(workers=2), Fake()
    tickets = [busy(caller, backend)]
    assert caller.scheduler.wait == 0.0
    tickets.append(busy(caller, backend))
    assert caller.scheduler.wait > 0.0
    backend.gate.set()
    caller.wait(*tickets)
    assert caller.scheduler.wait == 0.0


def test_a_request_cancelled_in_the_queue_does_not_run(start: Start) -> None:
    caller, backend = start(limit=2), Fake()
    first = busy(caller, backend)
    cancelled = caller.ask(backend, 1, 2)
    caller.scheduler.cancel(cancelled)
    assert caller.scheduler.depth == 0
    after = caller.ask(backend, 3, 4)
    backend.gate.set()
    caller.wait(first, after)
    assert [numbers[0] for _, numbers in backend.ran] == [-1, 3, 4]
    assert cancelled not in caller.finished


def test_requests_cancelled_while_running_or_decoding_are_not_reported(start: Start) -> None:
    caller, backend = start(), Fake()
    running = busy(caller, backend)
    decoding = caller.ask(backend, 1, 2, submit=False)
    caller.scheduler.cancel(running)
    caller.scheduler.cancel(decoding)
    caller.submit(decoding, 0, backend, 1)
    caller.scheduler.fail(decoding, 1, ImageError("late"))
    caller.scheduler.cancel(decoding)
    backend.gate.set()
    until(lambda: caller.scheduler.pending == 0)
    assert caller.finished == []
    assert [numbers[0] for _, numbers in backend.ran] == [-1]


def test_a_failed_run_does_not_affect_others(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caller, backend = start(), Fake()
    backend.fails = {2: RuntimeError("secret")}
    backend.gate.set()
    tickets = [caller.ask(backend, i) for i in range(4)]
    caller.wait(*tickets)
    assert isinstance(tickets[2].outcomes[0], InternalError)
    assert "secret" not in str(tickets[2].outcomes[0])
    assert "secret" in caplog.text
    assert all(isinstance(tickets[i].outcomes[0], RunOutput) for i in (0, 1, 3))
    assert caller.scheduler.alive


def test_a_failed_item_does_not_fail_its_batch(start: Start) -> None:
    caller, backend = start(), Fake(max_batch=8)
    first = busy(caller, backend)
    backend.fails = {2: ValueError("bad item")}
    tickets = [caller.ask(backend, i) for i in range(4)]
    backend.gate.set()
    caller.wait(first, *tickets)
    kinds = [type(ticket.outcomes[0]) for ticket in tickets]
    assert kinds == [RunOutput, RunOutput, InternalError, RunOutput]


def test_a_backend_that_returns_too_few_outputs_fails_its_items(start: Start) -> None:
    class Short(Fake):
        def run(self, *_: object, **__: object) -> Sequence[Sample]:
            return []

    caller = start()
    ticket = caller.ask(Short(), 1)
    caller.wait(ticket)
    assert isinstance(ticket.outcomes[0], InternalError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_answers_before_it_dies_and_is_reported_dead(start: Start) -> None:
    caller, backend = start(workers=2), Fake()
    backend.fails = {1: SystemExit()}
    backend.gate.set()
    ticket = caller.ask(backend, 1)
    caller.wait(ticket)
    assert isinstance(ticket.outcomes[0], InternalError)
    until(lambda: not caller.scheduler.alive)
    # The other worker goes on.
    after = caller.ask(backend, 2)
    caller.wait(after)
    assert isinstance(after.outcomes[0], RunOutput)
    assert not caller.scheduler.dead


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_requests_are_refused_when_no_worker_is_alive(tmp_path: Path) -> None:
    bundle(tmp_path / "a")
    core = Core(settings(tmp_path, workers=2))
    core.start()
    until(lambda: core.started)
    caller, backend = Caller(core.scheduler), Fake()
    backend.fails = {1: SystemExit()}
    backend.gate.set()
    caller.wait(caller.ask(backend, 1))
    until(lambda: not core.scheduler.alive)
    # The other worker still answers.
    core.check_room()
    caller.wait(caller.ask(backend, 1))
    until(lambda: core.scheduler.dead)
    with pytest.raises(WorkerDied):
        core.check_room()
    assert core.stop()
    assert core.join_loader()
    # After a shutdown the reason is the shutdown, not dead workers.
    with pytest.raises(Draining):
        core.check_room()


def test_a_shutdown_while_loading_is_not_a_failure(tmp_path: Path) -> None:
    bundle(tmp_path / "a")
    failures: list[None] = []
    begun, go_on = threading.Event(), threading.Event()

    def load(*args: Any, **kwargs: Any) -> Backend:
        begun.set()
        assert go_on.wait(10)
        return sessions.load(*args, **kwargs)

    core = Core(
        settings(tmp_path),
        kinds=[StubKind("cpu", "cpu", load)],
        on_failure=lambda: failures.append(None),
    )
    assert core.join_loader()
    core.start()
    assert begun.wait(10)
    assert core.stop()
    assert not core.join_loader(timeout=0.05)
    go_on.set()
    assert core.join_loader()
    assert core.failed is None
    assert not failures
    assert not core.started


def test_a_past_slow_phase_refuses_no_requests(start: Start) -> None:
    now = 0.0
    costs = Costs(clock=lambda: now)
    works = (Work.of(WORKLOAD, plan_for(WORKLOAD, 0.0)),)
    costs.learn(Times({works[0].flops: 1.0}))
    for _ in range(200):
        costs.observe(works, 10.0)
    caller, backend = start(), Fake()
    backend.gate.set()
    with pytest.raises(TooSlowNow):
        caller.ask(backend, 1, cost=costs.seconds(works), within=3.0)
    now += 30.0
    caller.wait(caller.ask(backend, 1, cost=costs.seconds(works), within=3.0))


def test_a_drain_answers_admitted_requests(start: Start) -> None:
    caller, backend = start(), Fake()
    tickets = [busy(caller, backend), caller.ask(backend, 1)]
    decoding = caller.ask(backend, 2, submit=False)
    caller.scheduler.drain()
    with pytest.raises(Draining):
        caller.ask(backend, 3)
    caller.submit(decoding, 0, backend, 2)
    assert caller.scheduler.pending == 3
    backend.gate.set()
    caller.wait(*tickets, decoding)
    assert caller.scheduler.pending == 0


def test_stopping_runs_queued_requests_first() -> None:
    scheduler = Scheduler(workers=1, limit=9)
    scheduler.start()
    caller, backend = Caller(scheduler), Fake()
    tickets = [busy(caller, backend), caller.ask(backend, 1, 2)]
    threading.Timer(0.1, backend.gate.set).start()
    scheduler.stop()
    assert tickets == caller.finished
    assert not scheduler.alive


def test_stopping_does_not_wait_for_a_stuck_worker() -> None:
    scheduler = Scheduler(workers=1, limit=9)
    scheduler.start()
    backend = Fake()
    busy(Caller(scheduler), backend)
    begun = time.monotonic()
    scheduler.stop(timeout=0.2)
    assert time.monotonic() - begun < 2
    backend.gate.set()


def test_the_second_step_of_a_request_goes_before_later_requests(start: Start) -> None:
    caller, backend = start(), Fake()
    first = busy(caller, backend)
    two_steps = caller.ask(backend, 1, 2, submit=False)
    outcomes: list[Outcome] = []

    def follow(outcome: Outcome) -> None:
        outcomes.append(outcome)
        caller.submit(two_steps, 1, backend, 2)

    caller.submit(two_steps, 0, backend, 1, on_outcome=follow)
    later = caller.ask(backend, 3, 4)
    backend.gate.set()
    caller.wait(first, two_steps, later)
    assert [numbers[0] for _, numbers in backend.ran] == [-1, 1, 2, 3, 4]
    assert outcomes == [two_steps.outcomes[0]]


def test_a_failed_first_step_is_passed_to_on_outcome(start: Start) -> None:
    caller, backend = start(), Fake()
    backend.fails = {1: RuntimeError()}
    backend.gate.set()
    ticket = caller.ask(backend, 1, 2, submit=False)
    caller.submit(
        ticket, 0, backend, 1, on_outcome=lambda outcome: caller.scheduler.fail(ticket, 1, outcome)
    )
    caller.wait(ticket)
    assert all(isinstance(outcome, InternalError) for outcome in ticket.outcomes)
    assert caller.scheduler.depth == 0


def test_the_second_step_of_a_cancelled_request_does_not_run(start: Start) -> None:
    caller, backend = start(), Fake()
    ticket = caller.ask(backend, 1, 2, submit=False)
    followed = threading.Event()

    def follow(_: Outcome) -> None:
        caller.submit(ticket, 1, backend, 2)
        followed.set()

    caller.submit(ticket, 0, backend, 1, on_outcome=follow)
    until(lambda: backend.running == 1)
    caller.scheduler.cancel(ticket)
    backend.gate.set()
    assert followed.wait(10)
    until(lambda: caller.scheduler.pending == 0)
    assert [numbers for _, numbers in backend.ran] == [[1]]


def test_the_wait_adds_up_items_of_different_costs(start: Start) -> None:
    caller, backend = start(), Fake()
    first = busy(caller, backend)
    ticket = caller.scheduler.admit([1.0, 3.0], within=FOREVER, done=lambda: None)
    assert caller.scheduler.wait == pytest.approx(4.005)
    caller.scheduler.fail(ticket, 1, ImageError("bad"))
    assert caller.scheduler.wait == pytest.approx(1.005)
    with pytest.raises(TooSlowNow):
        caller.scheduler.admit([0.1, 2.0], within=3.0, done=lambda: None)
    caller.scheduler.cancel(ticket)
    assert caller.scheduler.depth == 0
    backend.gate.set()
    caller.wait(first)


def test_no_request_is_lost_under_concurrent_load(start: Start) -> None:
    caller, backend = start(workers=4, limit=10_000), Fake(max_batch=4)
    backend.gate.set()
    tickets: list[Ticket] = []
    cancelled: list[Ticket] = []
    lock = threading.Lock()

    def submit_requests(seed: int) -> None:
        choose = np.random.default_rng(seed)
        for i in range(200):
            ticket = caller.ask(backend, *range(choose.integers(1, 4)), plan=i % 5)
            with lock:
                if choose.random() < 0.2:
                    caller.scheduler.cancel(ticket)
                    cancelled.append(ticket)
                else:
                    tickets.append(ticket)

    threads = [threading.Thread(target=submit_requests, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: caller.scheduler.pending == 0)
    until(lambda: len(set(caller.finished) & set(tickets)) == len(tickets))
    assert len(caller.finished) == len(set(caller.finished))
    assert all(isinstance(outcome, RunOutput) for ticket in tickets for outcome in ticket.outcomes)
    assert caller.scheduler.depth == 0
    assert caller.scheduler.wait == 0.0


def test_runs_of_a_higher_priority_start_first(start: Start) -> None:
    caller, backend = start(), Fake()
    tickets = [busy(caller, backend)]
    priorities = [0, 1, 0, 2, -1, 1]
    tickets += [
        caller.ask(backend, number, plan=number % 2, priority=priority)
        for number, priority in enumerate(priorities)
    ]
    backend.gate.set()
    caller.wait(*tickets)
    assert [numbers[0] for _, numbers in backend.ran] == [-1, 3, 1, 5, 0, 2, 4]
