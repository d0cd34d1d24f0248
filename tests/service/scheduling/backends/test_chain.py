"""Tests of the chain of backends: a backend that fails is replaced, and no request is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tests.service import standin
from tests.service.scheduling.backends.stub_kind import StubKind
from tests.service.second import MAX_BATCH, Seconds, is_dark
from tests.service.standin import Remote, bundle, picture, problem, serving, until
from tests.service.standin_dual import dual_bundle, every_kind
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.tasks import Task
from tokenfold.inference.backend import Backend, Call, Sample
from tokenfold.service.app import create_app
from tokenfold.service.scheduling import warmup
from tokenfold.service.scheduling.backends.chain import BackendChain
from tokenfold.service.scheduling.backends.kinds import CPU, BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics
from tokenfold.service.scheduling.catalog import ServedModel
from tokenfold.service.scheduling.costs import Times

FAILURES = "tokenfold_backend_failures_total"
COLOURS = {"red": "red", "lime": "green", "blue": "blue"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a")
    return root


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def app(bundles: Path, *kinds: BackendKind, **changes: Any) -> Any:
    return create_app(standin.settings(bundles, **{"workers": 4} | changes), kinds=kinds)


def backend(remote: Remote, model: str = "colours") -> str:
    return str(remote.get(f"/v1/models/{model}").json()["backend"])


def failures(remote: Remote, name: str = "cuda", model: str = "colours") -> float:
    return remote.sample(FAILURES, model=model, backend=name)


def ask(remote: Remote, pool: ThreadPoolExecutor, count: int = 60) -> None:
    """Send many concurrent requests, and check each answer."""
    names = [list(COLOURS)[index % len(COLOURS)] for index in range(count)]
    levels = ["exact", "balanced", "fast"]
    futures = [
        pool.submit(remote.classify, picture(name), level=levels[index % 3])
        for index, name in enumerate(names)
    ]
    for future, name in zip(futures, names, strict=True):
        response = future.result()
        assert response.status_code == 200, response.text
        (result,) = response.json()["results"]
        assert result["predictions"][0]["label"] == COLOURS[name]


class TestThroughTheServer:
    def test_a_backend_that_fails_is_replaced_by_the_next_for_good(
        self, bundles: Path, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
    ) -> None:
        second = Seconds()
        with serving(app(bundles, second.kind, CPU)) as remote:
            assert backend(remote) == "cuda"
            assert failures(remote) == 0
            second.fails = lambda _: True
            ask(remote, pool)
            assert backend(remote) == "cpu"
            assert failures(remote) == 1
            labels = {"model": "colours"}
            assert remote.sample("tokenfold_model_backend", backend="cuda", **labels) == 0
            assert remote.sample("tokenfold_model_backend", backend="cpu", **labels) == 1
            (failing,) = second.made
            until(lambda: failing.closed == 1)
            # The failed backend is not used again.
            second.fails = lambda _: False
            ran = len(failing.ran)
            ask(remote, pool, 10)
            assert len(failing.ran) == ran
        messages = [
            record.getMessage() for record in caplog.records if record.levelno == logging.ERROR
        ]
        assert messages == [
            "colours: backend cuda failed and is given up; cpu takes over: the device is gone"
        ]

    def test_a_failure_under_load_loses_no_request(
        self, bundles: Path, pool: ThreadPoolExecutor
    ) -> None:
        second = Seconds()
        with serving(app(bundles, second.kind, CPU)) as remote:
            (failing,) = second.made
            enough = len(failing.ran) + 12
            second.fails = lambda _: len(failing.ran) > enough
            ask(remote, pool, 200)
            assert backend(remote) == "cpu"
            assert failures(remote) == 1
            until(lambda: failing.closed == 1)
            assert remote.get("/readyz").status_code == 200

    def test_two_batches_that_fail_together_count_as_one_failure(
        self, bundles: Path, pool: ThreadPoolExecutor
    ) -> None:
        second = Seconds()
        with serving(app(bundles, second.kind, CPU)) as remote:
            both = threading.Barrier(2)

            def fails(_: Sequence[Sample]) -> bool:
                both.wait(10)
                return True

            second.fails = fails
            futures = [pool.submit(remote.classify, picture("blue")) for _ in range(2)]
            assert [future.result().status_code for future in futures] == [200, 200]
            assert failures(remote) == 1
            until(lambda: second.made[0].closed == 1)

    def test_an_item_that_fails_on_every_backend_does_not_replace_the_backend(
        self, bundles: Path, pool: ThreadPoolExecutor
    ) -> None:
        first, last = Seconds(), Seconds("cpu", device="cpu")
        for seconds in (first, last):
            seconds.fails = lambda samples: any(map(is_dark, samples))
        with serving(app(bundles, first.kind, last.kind)) as remote:
            futures = [pool.submit(remote.classify, picture("black")) for _ in range(4)]
            ask(remote, pool, 30)
            for future in futures:
                assert "gone" not in problem(future.result(), 500, "internal")
            mixed = remote.classify(picture("red"), picture("black"), picture("blue")).json()
            assert ["predictions" in record for record in mixed["results"]] == [True, False, True]
            assert backend(remote) == "cuda"
            assert failures(remote) == 0
            # Loaded once, for the self-test of the first; then it waits.
            assert last.loaded == 1
            # If the first backend itself fails, the last one still takes over.
            first.fails = lambda _: True
            ask(remote, pool, 30)
            assert backend(remote) == "cpu"
            assert last.loaded == 1

    def test_the_only_backend_is_kept_after_a_failure(self, bundles: Path) -> None:
        second = Seconds()
        with serving(app(bundles, second.kind, CPU, backend="cuda")) as remote:
            second.fails = lambda _: True
            problem(remote.classify(picture()), 500, "internal")
            assert backend(remote) == "cuda"
            second.fails = lambda _: False
            assert remote.classify(picture()).status_code == 200

    def test_a_backend_that_cannot_be_loaded_is_skipped(
        self, bundles: Path, pool: ThreadPoolExecutor
    ) -> None:
        first, middle = Seconds(), Seconds("middle")
        middle.error = MemoryError("no memory")
        with serving(app(bundles, first.kind, middle.kind, CPU)) as remote:
            first.fails = lambda _: True
            ask(remote, pool, 30)
            assert backend(remote) == "cpu"
            assert failures(remote) == failures(remote, "middle") == 1
            assert middle.loaded == 1

    def test_two_backends_that_fail_are_both_replaced(
        self, bundles: Path, pool: ThreadPoolExecutor
    ) -> None:
        first, middle = Seconds("first"), Seconds("middle")
        with serving(app(bundles, first.kind, middle.kind, CPU)) as remote:
            first.fails = middle.fails = lambda _: True
            ask(remote, pool, 60)
            assert backend(remote) == "cpu"
            assert failures(remote, "first") == failures(remote, "middle") == 1
            until(lambda: all(failing.closed == 1 for failing in first.made + middle.made))

    def test_expected_durations_are_those_of_the_current_backend(self, bundles: Path) -> None:
        second = Seconds()
        server_app = app(bundles, second.kind, CPU)
        with serving(server_app) as remote:
            core = server_app.state.core
            (model,) = core.catalog
            assert core.dispatcher.share(model) == model.costs.share
            assert core.dispatcher.relative_duration(model, 5) == 1 + 4 * model.costs.share
            second.fails = lambda _: True
            assert remote.classify(picture()).status_code == 200
            assert core.dispatcher.share(model) == 1 / 4
            assert core.dispatcher.relative_duration(model, 5) == 2
            until(lambda: model.costs.share == 1.0)
            assert remote.classify(picture(), max_latency_ms=5000).status_code == 200

    def test_a_backend_that_fails_while_timed_is_replaced(
        self, bundles: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        second = Seconds()
        real, timed_kinds = warmup.times, []

        def times(model: ServedModel, *rest: Any) -> Times:
            measured = real(model, *rest)
            timed_kinds.append(model.backend.kind.name)
            if len(timed_kinds) > 1:
                return measured
            second.fails = lambda _: True
            real(model, *rest)
            until(lambda: len(timed_kinds) == 2)  # until the next backend has been timed
            return measured._replace(runs=dict.fromkeys(measured.runs, 1e6))

        monkeypatch.setattr(warmup, "times", times)
        server_app = app(bundles, second.kind, CPU)
        with serving(server_app) as remote:
            assert backend(remote) == "cpu"
            assert remote.classify(picture(), max_latency_ms=5000).status_code == 200

    def test_answers_stay_the_same_for_every_kind_of_network(self, tmp_path: Path) -> None:
        every_kind(tmp_path)
        fields_by_task: dict[Task, dict[str, Any]] = {
            "vqa": {"question": "what colour is it"},
            "entail": {"hypothesis": "it is red"},
            "match": {"text": ["it is red", "it is blue"]},
            "embed": {"include": "slots"},
            "reason": {"statement": "the left is red"},
        }

        def answers(remote: Remote) -> dict[str, Any]:
            collected: dict[str, Any] = {}
            for task, fields in fields_by_task.items():
                images = [picture("red"), picture("blue")][: 2 if task == "reason" else 1]
                response = remote.ask(task, *images, level="balanced", **fields)
                assert response.status_code == 200, response.text
                collected[task] = response.json()["results"]
                for record in collected[task]:
                    del record["timings_ms"], record["batch_size"]
            response = remote.post("/v1/embed", json={"text": ["a red circle"]})
            assert response.status_code == 200, response.text
            collected["text"] = response.json()["results"][0]["vector"]
            return collected

        second = Seconds()
        with serving(app(tmp_path, second.kind, CPU)) as remote:
            before = answers(remote)
            second.fails = lambda _: True
            assert answers(remote) == before
            names = {model["name"] for model in remote.get("/v1/models").json()["models"]}
            fallen = {name for name in names if failures(remote, model=name)}
            assert fallen
            assert {name for name in names if backend(remote, name) == "cpu"} == fallen


class Plain:
    """A backend that maps numbers to numbers, at most three per run."""

    native = False
    max_concurrent_runs = None

    def __init__(self, change: Callable[[float], float] = lambda number: number) -> None:
        self._change = change
        self.ran: list[int] = []
        self.closed = 0

    def batch_size_for(self, _: Call, waiting: int, /) -> int:
        return min(waiting, 3)

    def run(self, samples: Sequence[Sample], call: Call, *, slots: bool) -> Sequence[Sample]:
        assert (call, slots) == (CALL, True)
        self.ran.append(len(samples))
        return [{"logits": np.array(self._change(float(sample["image"])))} for sample in samples]

    def close(self) -> None:
        self.closed += 1
        raise OSError("not even that")


CALL = Call("answer", "classify", ((0,),), ((1, 1),))


def gone(_: float) -> float:
    raise RuntimeError("first")


def always(backend: Backend) -> Callable[[Bundle], Backend]:
    return lambda _: backend


class Checked:
    """A backend that asserts that it is never used after it was closed."""

    native = False
    max_concurrent_runs = None

    def __init__(self, kind: Checks) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._running = 0
        self.closed = False

    def batch_size_for(self, _: Call, waiting: int, /) -> int:
        return waiting

    def run(self, samples: Sequence[Sample], _: Call, *, slots: bool) -> Sequence[Sample]:
        assert slots
        with self._lock:
            assert not self.closed
            self._running += 1
        time.sleep(0.0005)
        with self._lock:
            self._running -= 1
        if self._kind.broken:
            raise RuntimeError("gone")
        return samples

    def close(self) -> None:
        with self._lock:
            assert not self._running
            assert not self.closed
            self.closed = True


class Checks:
    """A kind of `Checked` backends, whose runs fail once `broken` is set."""

    def __init__(self, name: str) -> None:
        self.kind = StubKind(name, "cuda", self.load)
        self.broken = False
        self.made: list[Checked] = []

    def load(self, _: Bundle) -> Checked:
        self.made.append(Checked(self))
        return self.made[-1]


class Chained:
    """Base class of tests that build chains, and record which backends take over."""

    def _chain(self, opened: Bundle, first: Backend, *rest: Backend) -> BackendChain:
        kinds = [StubKind(f"rest-{index}", "cpu", always(one)) for index, one in enumerate(rest)]
        return BackendChain(
            opened,
            StubKind("first", "cuda", lambda _: first),
            first,
            kinds,
            metrics=BackendMetrics(CollectorRegistry()),
            switched=lambda one: self.switched.append(one.kind.name),
        )

    def setup_method(self) -> None:
        self.switched: list[str] = []


class TestAlone(Chained):
    def test_a_failed_batch_is_split_into_batches_of_the_next_backend(self, bundles: Path) -> None:
        opened = Bundle.open(bundles / "a")
        first, after = Plain(gone), Plain(lambda number: 2 * number)
        chain = self._chain(opened, first, after)
        samples = [{"image": np.array(float(number))} for number in range(8)]
        outputs = chain.run(samples, CALL, slots=True)
        assert [float(output["logits"]) for output in outputs] == [
            2.0 * number for number in range(8)
        ]
        assert sorted(after.ran) == [2, 3, 3]
        assert self.switched == ["rest-0"]
        assert first.closed == 1
        assert chain.batch_size_for(CALL, 9) == 3
        chain.close()
        assert after.closed == 1

    def test_the_pieces_of_a_failed_batch_run_concurrently(
        self, bundles: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One after the other, a GPU's batch could exceed the request timeout on a CPU."""
        monkeypatch.setattr("tokenfold.service.scheduling.backends.chain.cores", lambda: 3)
        together = threading.Barrier(3, timeout=10)

        def meet(number: float) -> float:
            if number % 3 == 0:  # once in each piece
                together.wait()
            return number

        chain = self._chain(Bundle.open(bundles / "a"), Plain(gone), Plain(meet))
        samples = [{"image": np.array(float(number))} for number in range(9)]
        outputs = chain.run(samples, CALL, slots=True)
        assert [float(output["logits"]) for output in outputs] == [
            float(number) for number in range(9)
        ]

    def test_the_error_of_the_first_backend_is_raised_if_all_fail(self, bundles: Path) -> None:
        opened = Bundle.open(bundles / "a")

        def fail_differently(_: float) -> float:
            raise ValueError("second")

        first = Plain(gone)
        chain = self._chain(opened, first, Plain(fail_differently))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="first"):
                chain.run([{"image": np.array(1.0)}], CALL, slots=True)
        assert chain.kind.name == "first"
        assert self.switched == []
        assert not first.closed

    def test_too_few_outputs_are_a_failure(self, bundles: Path) -> None:
        class Short(Plain):
            def run(self, *_: object, **__: object) -> Sequence[Sample]:
                return []

        chain = self._chain(Bundle.open(bundles / "a"), Plain(gone), Short())
        with pytest.raises(RuntimeError, match="first"):
            chain.run([{"image": np.array(1.0)}], CALL, slots=True)

    def test_a_replaced_backend_is_closed_after_its_last_run(self, bundles: Path) -> None:
        go_on = threading.Event()
        inside = threading.Event()

        def slow_or_gone(number: float) -> float:
            if number:
                return gone(number)
            inside.set()
            assert go_on.wait(10)
            return number

        first, after = Plain(slow_or_gone), Plain()
        chain = self._chain(Bundle.open(bundles / "a"), first, after)
        slow: list[Any] = []
        thread = threading.Thread(
            target=lambda: slow.extend(chain.run([{"image": np.array(0.0)}], CALL, slots=True))
        )
        thread.start()
        assert inside.wait(10)
        chain.run([{"image": np.array(1.0)}], CALL, slots=True)
        assert not first.closed
        go_on.set()
        thread.join(10)
        assert [first.closed, len(slow)] == [1, 1]

    def test_the_next_backend_is_loaded_once_by_many_threads(self, bundles: Path) -> None:
        second = Seconds()
        opened = Bundle.open(bundles / "a")
        registry = CollectorRegistry()
        first = Plain(gone)
        chain = BackendChain(
            opened,
            StubKind("first", "cuda", lambda _: first),
            first,
            [second.kind],
            metrics=BackendMetrics(registry),
        )
        call = Call("answer", "classify", (opened.manifest.workload.unreduced,), ((16, 16),))
        sample = {"image": np.zeros((16, 16, 3), np.uint8)}

        class Now(Plain):
            def run(self, *_: object, **__: object) -> Sequence[Sample]:
                together.wait(10)
                raise RuntimeError("first")

        together = threading.Barrier(6)
        chain._current = Now()
        with ThreadPoolExecutor(6) as pool:
            futures = [
                pool.submit(chain.run, [sample] * (MAX_BATCH + 1), call, slots=False)
                for _ in range(6)
            ]
            assert [len(future.result()) for future in futures] == [MAX_BATCH + 1] * 6
        assert second.loaded == 1
        labels = {"model": "colours", "backend": "first"}
        assert registry.get_sample_value(FAILURES, labels) == 1


class TestPromoted(Chained):
    """Promotion of a better backend; test_preparation.py has those whose engines are built."""

    def _promoted(
        self, opened: Bundle, first: Backend, new: Backend, *rest: Backend
    ) -> tuple[BackendChain, BackendKind]:
        chain = self._chain(opened, first, *rest)
        kind = StubKind("new", "cuda", always(new))
        chain.promote(kind, new)
        return chain, kind

    def test_a_promoted_backend_runs_new_requests(
        self, bundles: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, new = Plain(), Plain(lambda number: 2 * number)
        chain, kind = self._promoted(Bundle.open(bundles / "a"), first, new)
        (output,) = chain.run([{"image": np.array(4.0)}], CALL, slots=True)
        assert float(output["logits"]) == 8.0
        assert chain.kind is kind
        assert self.switched == ["new"]
        assert (first.closed, first.ran, new.closed) == (1, [], 0)
        assert "colours: new takes over from first" in caplog.text
        chain.close()
        assert (first.closed, new.closed) == (1, 1)

    def test_the_previous_backend_finishes_its_runs(self, bundles: Path) -> None:
        inside, go_on = threading.Barrier(3), threading.Event()

        def slow(number: float) -> float:
            inside.wait(10)
            assert go_on.wait(10)
            return number

        first, new = Plain(slow), Plain()
        chain = self._chain(Bundle.open(bundles / "a"), first)
        with ThreadPoolExecutor(2) as pool:
            futures = [
                pool.submit(chain.run, [{"image": np.array(1.0)}], CALL, slots=True)
                for _ in range(2)
            ]
            inside.wait(10)
            chain.promote(StubKind("new", "cuda", always(new)), new)
            chain.run([{"image": np.array(1.0)}], CALL, slots=True)
            assert not first.closed
            go_on.set()
            assert [len(future.result()) for future in futures] == [1, 1]
        assert (first.closed, new.ran) == (1, [1])

    def test_the_previous_backend_is_the_fallback(self, bundles: Path) -> None:
        first, last = Plain(), Plain()
        chain, _ = self._promoted(Bundle.open(bundles / "a"), first, Plain(gone), last)
        chain.run([{"image": np.array(1.0)}], CALL, slots=True)
        assert chain.kind.name == "first"
        assert self.switched == ["new", "first"]
        assert (first.ran, last.ran) == ([1], [])
        # It was closed before it was loaded again.
        assert first.closed == 1

    def test_failed_runs_of_the_previous_backend_are_repeated_on_the_new_one(
        self, bundles: Path
    ) -> None:
        inside, go_on = threading.Event(), threading.Event()

        def fail(number: float) -> float:
            inside.set()
            assert go_on.wait(10)
            return gone(number)

        first, new, last = Plain(fail), Plain(), Plain()
        chain = self._chain(Bundle.open(bundles / "a"), first, last)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(chain.run, [{"image": np.array(1.0)}], CALL, slots=True)
            assert inside.wait(10)
            chain.promote(StubKind("new", "cuda", always(new)), new)
            go_on.set()
            assert len(future.result()) == 1
        assert (new.ran, last.ran) == ([1], [])
        assert chain.kind.name == "new"
        # The first backend has failed, so it is skipped when the new one fails.
        assert self.switched == ["new"]
        new._change = gone
        chain.run([{"image": np.array(1.0)}], CALL, slots=True)
        assert chain.kind.name == "rest-0"
        assert first.ran == [1]

    def test_items_that_fail_on_every_backend_change_nothing(self, bundles: Path) -> None:
        def odd(number: float) -> float:
            return gone(number) if number % 2 else number

        first, new = Plain(odd), Plain(odd)
        chain, _ = self._promoted(Bundle.open(bundles / "a"), first, new)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="first"):
                chain.run([{"image": np.array(1.0)}], CALL, slots=True)
        chain.run([{"image": np.array(2.0)}], CALL, slots=True)
        assert chain.kind.name == "new"
        assert self.switched == ["new"]

    def test_a_previous_backend_that_cannot_be_loaded_again_is_skipped(self, bundles: Path) -> None:
        """The previous backend may find no memory; then the next one takes over."""
        second, last = Seconds(), Plain()
        opened = Bundle.open(bundles / "a")
        chain = BackendChain(
            opened,
            second.kind,
            second.kind.load(opened),
            [StubKind("last", "cpu", always(last))],
            metrics=BackendMetrics(CollectorRegistry()),
        )
        chain.promote(StubKind("new", "cuda", always(Plain(gone))), Plain(gone))
        second.error = MemoryError("no memory")
        chain.run([{"image": np.array(1.0)}], CALL, slots=True)
        assert chain.kind.name == "last"

    def test_no_request_is_lost_while_backends_change(self, bundles: Path) -> None:
        """No closed backend runs, every request is answered, and failed backends are replaced."""
        opened = Bundle.open(bundles / "a")
        for _ in range(5):
            self._overtake(opened)

    def _overtake(self, opened: Bundle) -> None:
        new, first, last = Checks("new"), Checks("first"), Checks("last")
        chain = BackendChain(
            opened,
            first.kind,
            first.load(opened),
            [last.kind],
            metrics=BackendMetrics(CollectorRegistry()),
        )
        end = threading.Event()

        def ask() -> int:
            count = 0
            while not end.is_set():
                sample = {"image": np.array(1.0)}
                assert chain.run([sample], CALL, slots=True)[0] is sample
                count += 1
            return count

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(ask) for _ in range(8)]
            chain.promote(new.kind, new.load(opened))
            until(lambda: first.made[0].closed)
            new.broken = True
            until(lambda: chain.kind is first.kind)
            first.broken = True
            until(lambda: chain.kind is last.kind)
            end.set()
            assert min(future.result(10) for future in futures) > 0
        assert [backend.closed for backend in new.made + first.made] == [True, True, True]
        assert [backend.closed for backend in last.made] == [False]


def test_galleries_work_after_a_backend_failure(tmp_path: Path) -> None:
    dual_bundle(tmp_path / "b")
    second = Seconds()
    with serving(app(tmp_path, second.kind, CPU)) as remote:
        created = remote.post("/v1/galleries", json={"name": "g", "model": "dual"})
        assert created.status_code == 201, created.text
        second.fails = lambda _: True
        files = [("image", ("a.png", picture(name))) for name in ("red", "blue")]
        added = remote.post("/v1/galleries/g/images", files=files)
        assert added.status_code == 200, added.text
        assert backend(remote, "dual") == "cpu"
