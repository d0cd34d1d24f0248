"""Tests of engines built while another backend serves, or before the start."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.service import standin
from tests.service.engined import Engined
from tests.service.scheduling.backends.stub_kind import StubKind
from tests.service.second import Seconds
from tests.service.standin import Remote, bundle, picture, problem, serving, until
from tokenfold.bundle.bundle import Bundle
from tokenfold.runtime.tensorrt.process import BuildError, Progress, ProgressCallback, StoppedError
from tokenfold.service.app import create_app
from tokenfold.service.core import Core
from tokenfold.service.scheduling.backends.kinds import CPU, BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics
from tokenfold.service.scheduling.backends.preparation import Preparation
from tokenfold.service.scheduling.backends.selftest import SelfTestError
from tokenfold.service.scheduling.backends.status import EngineStatus

FAILURES = "tokenfold_backend_failures_total"
USED = "tokenfold_model_backend"
PROGRESS = "tokenfold_engine_build_progress"
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles."""
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a", name="colours")
    bundle(root / "b", name="plain")
    return root


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one bundle."""
    root = tmp_path_factory.mktemp("bundle")
    bundle(root / "a", name="colours")
    return root


@pytest.fixture
def engined(tmp_path: Path) -> Engined:
    return Engined(tmp_path / "engines")


def app(bundles: Path, *kinds: BackendKind, **changes: Any) -> Any:
    return create_app(standin.settings(bundles, **{"workers": 4} | changes), kinds=kinds)


def backend(remote: Remote, model: str = "colours") -> str:
    return str(remote.get(f"/v1/models/{model}").json()["backend"])


def engines(remote: Remote) -> list[dict[str, Any]]:
    response = remote.get("/startupz")
    body = response.json()
    if response.status_code == 200:
        assert body["status"] == "ok"
    else:
        problem(response, 503, "starting")
    listed: list[dict[str, Any]] = body.get("engines", [])
    for entry in listed:
        EngineStatus.model_validate(entry)
    return listed


def states(remote: Remote) -> list[str]:
    return [entry["state"] for entry in engines(remote)]


def progress(remote: Remote) -> dict[str, float]:
    """Return the build progress of each model in the metrics."""
    samples = re.findall(
        rf'^{PROGRESS}\{{backend="tensorrt",model="(\w+)"\}} (\S+)$',
        remote.get("/metrics").text,
        re.MULTILINE,
    )
    return {model: float(fraction) for model, fraction in samples}


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


class Load:
    """Context that sends requests from several threads without pause, and checks each answer."""

    def __init__(self, remote: Remote, threads: int = 8) -> None:
        self._remote = remote
        self._end = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self._futures = [self._pool.submit(self._ask, offset) for offset in range(threads)]

    def _ask(self, offset: int) -> int:
        names = {"red": "red", "lime": "green", "blue": "blue"}
        count = 0
        while not self._end.is_set():
            name = list(names)[(offset + count) % 3]
            level = ["exact", "balanced", "fast"][count % 3]
            response = self._remote.classify(picture(name), level=level, model="colours")
            assert response.status_code == 200, response.text
            (result,) = response.json()["results"]
            assert result["predictions"][0]["label"] == names[name]
            count += 1
        return count

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.counts = [future.result(30) for future in self._futures]
        self._pool.shutdown()


class TestInTheBackground:
    def test_another_backend_serves_while_engines_are_built(
        self, bundles: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        engined.gate.touch()
        second = Seconds()
        server_app = app(bundles, engined.kind, second.kind, CPU)
        with serving(server_app) as remote:
            assert [backend(remote, name) for name in ("colours", "plain")] == ["cuda", "cuda"]
            assert remote.classify(picture()).status_code == 200
            until(lambda: engines(remote)[0].get("phase") == "step 9")
            assert engines(remote) == [
                {
                    "model": "colours",
                    "backend": "tensorrt",
                    "state": "building",
                    "done": 0.45,
                    "engine": "colours-image",
                    "phase": "step 9",
                },
                {"model": "plain", "backend": "tensorrt", "state": "waiting", "done": 0.0},
            ]
            labels = {"model": "colours", "backend": "tensorrt"}
            assert progress(remote) == {"colours": 0.45, "plain": 0.0}
            assert not engined.made
            engined.gate.unlink()
            until(lambda: states(remote) == ["serving", "serving"])
            assert [backend(remote, name) for name in ("colours", "plain")] == ["tensorrt"] * 2
            assert remote.classify(picture()).status_code == 200
            assert [entry["done"] for entry in engines(remote)] == [1.0, 1.0]
            assert set(engines(remote)[0]) == {"model", "backend", "state", "done"}
            assert engined.prepared == ["colours", "plain"]
            assert progress(remote) == {"colours": 1.0, "plain": 1.0}
            assert remote.sample(FAILURES, **labels) == 0
            assert remote.sample(USED, **labels) == 1
            assert remote.sample(USED, model="colours", backend="cuda") == 0
            # The previous backends are closed, to release their memory.
            until(lambda: [loaded.closed for loaded in second.made] == [1, 1])
            assert [loaded.closed for loaded in engined.made] == [0, 0]
            self._check_costs(server_app.state.core)
        lines = [line for line in messages(caplog, logging.INFO) if line.startswith("colours")]
        assert lines[0] == "colours: backend tensorrt is not used yet: its engines are not built"
        assert "colours: engines for backend tensorrt are being built" in lines
        tenths = [line for line in lines if line.endswith("%")]
        assert tenths == [
            f"colours: engines for backend tensorrt are built to {tenth}0 %"
            for tenth in range(1, 11)
        ]
        (built,) = [
            record
            for record in caplog.records
            if record.getMessage() == "colours: engines for backend tensorrt are built"
        ]
        assert built.__dict__["seconds"] > 0
        assert lines[-2:] == [
            "colours: backend tensorrt passed its self-test",
            "colours: tensorrt takes over from cuda",
        ]
        assert not messages(caplog, logging.ERROR)

    @staticmethod
    def _check_costs(engine: Core) -> None:
        """Check that durations and shares are those of the new backend."""
        model = engine.catalog.get("colours")
        assert model.backend.max_concurrent_runs == 2
        assert engine.dispatcher.share(model) == model.costs.share

    def test_expected_durations_follow_the_new_backend(
        self, single: Path, engined: Engined, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engined.gate.touch()
        server_app = app(single, engined.kind, CPU)
        with serving(server_app) as remote:
            engine = server_app.state.core
            (model,) = engine.catalog
            assert engine.dispatcher.share(model) == 1 / 4
            assert engine.dispatcher.relative_duration(model, 5) == 2
            learnt: list[str] = []
            monkeypatch.setattr(
                model.costs, "learn", lambda _: learnt.append(model.backend.kind.name)
            )
            engined.gate.unlink()
            until(lambda: states(remote) == ["serving"])
            assert engine.dispatcher.share(model) == model.costs.share
            assert engine.dispatcher.relative_duration(model, 5) == 1 + 4 * model.costs.share
            until(lambda: learnt == ["tensorrt"])
            assert remote.classify(picture(), max_latency_ms=5000).status_code == 200

    @pytest.mark.parametrize("name", ["cuda", "cpu"])
    def test_no_request_is_lost_when_the_new_backend_takes_over(
        self, single: Path, engined: Engined, name: str
    ) -> None:
        engined.gate.touch()
        second = Seconds(name, device=name)
        with serving(app(single, engined.kind, second.kind, CPU)) as remote:
            with Load(remote) as load:
                time.sleep(0.3)
                assert backend(remote) == name
                engined.gate.unlink()
                until(lambda: backend(remote) == "tensorrt", 30)
                ran = len(engined.made[0].ran)
                until(lambda: len(engined.made[0].ran) > ran + 20, 30)
            assert min(load.counts) > 0
            # A closed backend asserts that it runs nothing.
            assert [loaded.closed for loaded in second.made] == [1]
            for given_up in ("tensorrt", "cuda", "cpu"):
                assert remote.sample(FAILURES, model="colours", backend=given_up) == 0

    def test_existing_engines_are_used_from_the_start(
        self, bundles: Path, engined: Engined
    ) -> None:
        engined.build(Bundle.open(bundles / "a"))
        engined.mode["plain"] = "hangs"
        second = Seconds()
        with serving(app(bundles, engined.kind, second.kind, CPU)) as remote:
            assert [backend(remote, name) for name in ("colours", "plain")] == ["tensorrt", "cuda"]
            assert [entry["model"] for entry in engines(remote)] == ["plain"]
            assert len(second.made) == 1

    def test_nothing_is_built_when_every_engine_exists(
        self, single: Path, engined: Engined
    ) -> None:
        engined.build(Bundle.open(single / "a"))
        with serving(app(single, engined.kind, CPU)) as remote:
            assert remote.get("/startupz").json() == {"status": "ok"}
            assert PROGRESS + "{" not in remote.get("/metrics").text
            assert not engined.prepared

    def test_a_second_start_builds_nothing(self, single: Path, engined: Engined) -> None:
        with serving(app(single, engined.kind, CPU)) as remote:
            until(lambda: states(remote) == ["serving"])
        with serving(app(single, engined.kind, CPU)) as remote:
            assert backend(remote) == "tensorrt"
        assert engined.prepared == ["colours"]


class TestFailures:
    @pytest.mark.parametrize(
        ("mode", "why"),
        [
            ("fails", "no kernel fits"),
            ("aborts", "the builder was killed by SIGABRT: what():  bad luck"),
        ],
    )
    def test_a_failed_build_leaves_the_other_backend_in_use(
        self,
        bundles: Path,
        engined: Engined,
        mode: str,
        why: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        engined.mode["colours"] = mode
        with serving(app(bundles, engined.kind, CPU)) as remote:
            until(lambda: states(remote) == ["failed", "serving"])
            failed, _ = engines(remote)
            assert failed == {
                "model": "colours",
                "backend": "tensorrt",
                "state": "failed",
                "done": 0.25,
                "why": why,
            }
            assert [backend(remote, name) for name in ("colours", "plain")] == ["cpu", "tensorrt"]
            assert remote.sample(FAILURES, model="colours", backend="tensorrt") == 1
            assert remote.sample(USED, model="colours", backend="tensorrt") == 0
            assert remote.sample(USED, model="colours", backend="cpu") == 1
            assert progress(remote) == {"plain": 1.0}
            assert remote.classify(picture(), model="colours").status_code == 200
        assert messages(caplog, logging.ERROR) == [f"colours: backend tensorrt is not used: {why}"]

    def test_a_killed_build_leaves_the_other_backend_in_use(
        self, single: Path, engined: Engined
    ) -> None:
        engined.gate.touch()
        with serving(app(single, engined.kind, CPU)) as remote:
            until(lambda: engines(remote)[0].get("phase") == "step 9")
            (pid,) = engined.processes()
            os.kill(pid, signal.SIGKILL)
            until(lambda: states(remote) == ["failed"])
            assert engines(remote)[0]["why"].startswith("the builder was killed by SIGKILL")
            assert backend(remote) == "cpu"
            assert remote.classify(picture()).status_code == 200

    def test_engines_that_fail_the_self_test_are_not_used(
        self, bundles: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        engined.wrong = 1.0
        second = Seconds()
        with serving(app(bundles, engined.kind, second.kind, CPU)) as remote, Load(remote):
            until(lambda: states(remote) == ["failed", "failed"], 30)
            assert [backend(remote, name) for name in ("colours", "plain")] == ["cuda", "cuda"]
            assert [loaded.closed for loaded in engined.made] == [1, 1]
            assert [loaded.closed for loaded in second.made] == [0, 0]
            assert [entry["done"] for entry in engines(remote)] == [1.0, 1.0]
            assert "differs from the CPU by more than" in engines(remote)[0]["why"]
            assert progress(remote) == {}
            assert remote.sample(FAILURES, model="plain", backend="tensorrt") == 1
        lines = messages(caplog, logging.ERROR)
        assert [line.partition(": differs from the CPU")[0] for line in lines] == [
            "colours: backend tensorrt is not used",
            "plain: backend tensorrt is not used",
        ]

    def test_engines_that_cannot_be_loaded_are_not_used(
        self, single: Path, engined: Engined
    ) -> None:
        engined.error = MemoryError()
        with serving(app(single, engined.kind, CPU)) as remote:
            until(lambda: states(remote) == ["failed"])
            assert engines(remote)[0]["why"] == "MemoryError"
            assert backend(remote) == "cpu"

    def test_an_unreadable_engine_folder_disables_the_backend(
        self, single: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        def unprepared(_: Bundle) -> list[str]:
            raise PermissionError("not yours")

        kind = StubKind("tensorrt", "cuda", engined.kind.load, unprepared=unprepared)
        with serving(app(single, kind, CPU)) as remote:
            assert backend(remote) == "cpu"
            assert engines(remote) == []
            assert remote.sample(FAILURES, model="colours", backend="tensorrt") == 1
        assert messages(caplog, logging.ERROR) == [
            "colours: backend tensorrt is not used: not yours"
        ]
        by_force = app(single, kind, CPU, backend="tensorrt")
        with serving(by_force):
            assert isinstance(by_force.state.core.failed, PermissionError)


class TestLaterFailures:
    def test_a_built_backend_that_fails_falls_back_twice(
        self, single: Path, engined: Engined
    ) -> None:
        second = Seconds()
        with serving(app(single, engined.kind, second.kind, CPU)) as remote, Load(remote):
            until(lambda: states(remote) == ["serving"], 30)
            engined.fails = lambda _: True
            until(lambda: backend(remote) == "cuda", 30)
            # The previous backend was closed at the promotion, and is loaded again.
            assert second.loaded == 2
            until(lambda: engined.made[0].closed == 1)
            (entry,) = engines(remote)
            assert entry["state"] == "failed"
            assert entry["why"] == "it failed while serving; the log says more"
            used = {name: remote.sample(USED, model="colours", backend=name) for name in
                    ("tensorrt", "cuda", "cpu")}  # fmt: skip
            assert used == {"tensorrt": 0, "cuda": 1, "cpu": 0}
            second.fails = lambda _: True
            until(lambda: backend(remote) == "cpu", 30)
            failed = [remote.sample(FAILURES, model="colours", backend=name) for name in
                      ("tensorrt", "cuda", "cpu")]  # fmt: skip
            assert failed == [1, 1, 0]

    def test_a_backend_that_failed_before_the_promotion_is_not_a_fallback(
        self, single: Path, engined: Engined
    ) -> None:
        engined.gate.touch()
        second = Seconds()
        with serving(app(single, engined.kind, second.kind, CPU)) as remote:
            second.fails = lambda _: True
            assert remote.classify(picture()).status_code == 200
            assert backend(remote) == "cpu"
            engined.gate.unlink()
            until(lambda: states(remote) == ["serving"])
            assert backend(remote) == "tensorrt"
            engined.fails = lambda _: True
            assert remote.classify(picture()).status_code == 200
            assert backend(remote) == "cpu"
            assert second.loaded == 1

    def test_a_promotion_during_failures_of_the_previous_backend_loses_no_request(
        self, single: Path, engined: Engined
    ) -> None:
        """Runs of the previous backend fail at the moment of the promotion."""
        engined.gate.touch()
        second = Seconds()
        with serving(app(single, engined.kind, second.kind, CPU)) as remote:
            held = threading.Event()

            def fails(_: object) -> bool:
                assert held.wait(20)
                return True

            second.fails = fails
            with ThreadPoolExecutor(8) as pool:
                futures = [pool.submit(remote.classify, picture("blue")) for _ in range(8)]
                until(lambda: second.made[0].running == 2)
                engined.gate.unlink()
                until(lambda: states(remote) == ["serving"])
                held.set()
                for future in futures:
                    (result,) = future.result().json()["results"]
                    assert result["predictions"][0]["label"] == "blue"
            # Only the previous backend has failed, so it is not used again.
            assert backend(remote) == "tensorrt"
            assert remote.sample(FAILURES, model="colours", backend="cuda") == 1
            assert remote.sample(FAILURES, model="colours", backend="tensorrt") == 0
            until(lambda: second.made[0].closed == 1)
            engined.fails = lambda _: True
            assert remote.classify(picture()).status_code == 200
            assert backend(remote) == "cpu"
            assert second.loaded == 1


class TestShutdown:
    def test_a_shutdown_ends_a_build(
        self, bundles: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        engined.mode["colours"] = "hangs"
        server_app = app(bundles, engined.kind, CPU)
        with serving(server_app) as remote:
            until(lambda: len(engined.processes()) == 2)
            assert remote.classify(picture()).status_code == 200
            begun = time.monotonic()
        assert server_app.state.core.join_loader()
        until(lambda: not engined.processes())
        assert time.monotonic() - begun < 10
        assert engined.prepared == ["colours"]
        assert not list(engined.folder.glob("*.engine"))
        assert not messages(caplog, logging.ERROR)
        assert "engines given up: the server is shutting down" in messages(caplog, logging.INFO)

    def test_a_drain_ends_a_build_before_the_last_answer(
        self, single: Path, engined: Engined
    ) -> None:
        engined.mode["colours"] = "hangs"
        second = Seconds()
        server_app = app(single, engined.kind, second.kind, CPU)
        with serving(server_app) as remote, ThreadPoolExecutor(2) as pool:
            until(lambda: len(engined.processes()) == 2)
            held = threading.Event()

            def slow(_: object) -> bool:
                assert held.wait(20)
                return False

            second.fails = slow
            answer = pool.submit(remote.classify, picture())
            until(lambda: second.made[0].running == 1)
            drained = pool.submit(lambda: asyncio.run(server_app.state.core.drain()))
            until(lambda: not engined.processes())
            assert not answer.done()
            held.set()
            assert answer.result().status_code == 200
            drained.result(10)
            until(lambda: progress(remote) == {})

    def test_a_shutdown_during_the_self_test_closes_the_backend(
        self, single: Path, engined: Engined
    ) -> None:
        begun, held = threading.Event(), threading.Event()

        def fails(_: object) -> bool:
            begun.set()
            assert held.wait(20)
            return False

        engined.fails = fails
        server_app = app(single, engined.kind, CPU)
        with serving(server_app) as remote:
            assert begun.wait(20)
            until(lambda: states(remote) == ["testing"])
        held.set()
        assert server_app.state.core.join_loader()
        # The new backend is not used, and is closed.
        assert engined.made[0].closed == 1
        assert server_app.state.core.catalog.get("colours").backend.kind is CPU


class TestByForce:
    def test_engines_of_the_configured_backend_are_built_before_the_start(
        self, bundles: Path, engined: Engined
    ) -> None:
        engined.gate.touch()
        server_app = app(bundles, engined.kind, CPU, backend="tensorrt")
        observed: dict[str, Any] = {}
        probe = threading.Thread(target=self._probe, args=(server_app, engined, observed))
        probe.start()
        with serving(server_app, patience=30) as remote:
            probe.join()
            assert [backend(remote, name) for name in ("colours", "plain")] == ["tensorrt"] * 2
            assert states(remote) == ["serving", "serving"]
            assert remote.classify(picture()).status_code == 200
            assert [loaded.closed for loaded in engined.made] == [0, 0]
        assert observed["states"] == ["building", "waiting"]
        assert observed["refused"] == [503, 503, 200]

    @staticmethod
    def _probe(server_app: Any, engined: Engined, observed: dict[str, Any]) -> None:
        # `serving` returns when the models are loaded; this runs before.
        until(lambda: hasattr(server_app.state, "port"))
        with Remote(f"http://127.0.0.1:{server_app.state.port}") as remote:
            until(lambda: engines(remote) and engines(remote)[0]["done"] > 0.4)
            observed["states"] = states(remote)
            observed["refused"] = [
                remote.get("/startupz").status_code,
                remote.classify(picture()).status_code,
                remote.get("/livez").status_code,
            ]
        engined.gate.unlink()

    def test_a_failed_build_fails_the_start(self, bundles: Path, engined: Engined) -> None:
        engined.mode["plain"] = "fails"
        failed = threading.Event()
        server_app = create_app(
            standin.settings(bundles, backend="tensorrt"),
            kinds=[engined.kind, CPU],
            on_failure=failed.set,
        )
        with serving(server_app) as remote:
            assert failed.is_set()
            assert isinstance(server_app.state.core.failed, BuildError)
            assert states(remote) == ["serving", "failed"]

    def test_a_failed_self_test_fails_the_start(self, single: Path, engined: Engined) -> None:
        engined.wrong = 1.0
        server_app = app(single, engined.kind, CPU, backend="tensorrt")
        with serving(server_app) as remote:
            assert isinstance(server_app.state.core.failed, SelfTestError)
            (entry,) = engines(remote)
            assert entry["state"] == "failed"
            assert "differs from the CPU by more than" in entry["why"]

    def test_a_shutdown_during_the_build_is_not_a_failure(
        self, single: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        engined.mode["colours"] = "hangs"
        failures: list[None] = []
        engine = Core(
            standin.settings(single, backend="tensorrt"),
            kinds=[engined.kind, CPU],
            on_failure=lambda: failures.append(None),
        )
        engine.start()
        until(lambda: len(engined.processes()) == 2)
        assert engine.stop()
        assert engine.join_loader()
        until(lambda: not engined.processes())
        assert engine.failed is None
        assert not failures
        assert "loading given up: the server is shutting down" in messages(caplog, logging.INFO)


def prepared(bundle: Bundle, *kinds: BackendKind) -> tuple[Preparation, list[BackendKind]]:
    preparation = Preparation(BackendMetrics(CollectorRegistry()))
    return preparation, preparation.survey(bundle, kinds)


def unbuilt(name: str, *, prepare: Any = None) -> BackendKind:
    def load(_: Bundle) -> Any:
        raise AssertionError("the backend must not be loaded")

    options = {} if prepare is None else {"prepare": prepare}
    return StubKind(name, "cuda", load, unprepared=lambda _: ["model"], **options)


class TestAlone:
    def test_the_backends_that_serve_until_engines_are_built(self, single: Path) -> None:
        opened = Bundle.open(single / "a")
        better, worse, ready = unbuilt("better"), unbuilt("worse"), Seconds("ready").kind
        for kinds, first, listed in (
            ([ready, CPU], [ready, CPU], []),
            ([better, ready, CPU], [ready, CPU], ["better"]),
            # A backend after one that is ready is not built.
            ([ready, better, CPU], [ready, CPU], []),
            ([better, worse, CPU], [CPU], ["better"]),
            ([better], [better], ["better"]),
            ([better, worse], [better], ["better"]),
        ):
            preparation, now = prepared(opened, *kinds)
            assert now == first
            assert [status.backend for status in preparation.statuses] == listed

    def test_engines_that_can_wait_are_not_built_before_the_start(self, single: Path) -> None:
        opened = Bundle.open(single / "a")
        preparation, _ = prepared(opened, unbuilt("better"), CPU)
        with preparation.before(opened):
            pass
        assert [status.state for status in preparation.statuses] == ["waiting"]

    def test_progress_never_decreases(self, single: Path) -> None:
        opened = Bundle.open(single / "a")
        reported: list[tuple[float, str | None]] = []

        def prepare(_: Bundle, report: ProgressCallback, __: threading.Event) -> None:
            for done, engine in ((0.5, "a"), (0.1, "b"), (0.7, "b")):
                report(Progress(done, engine, "working"))
                (status,) = preparation.statuses
                reported.append((status.done, status.engine))

        preparation, _ = prepared(opened, unbuilt("better", prepare=prepare))
        with preparation.before(opened):
            (status,) = preparation.statuses
            assert (status.state, status.done, status.engine) == ("testing", 1.0, None)
        assert [status.state for status in preparation.statuses] == ["serving"]
        assert reported == [(0.5, "a"), (0.5, "b"), (0.7, "b")]

    def test_no_build_starts_after_stop(self, single: Path) -> None:
        opened = Bundle.open(single / "a")
        preparation, _ = prepared(opened, unbuilt("better"))
        preparation.stop()
        with pytest.raises(StoppedError), preparation.before(opened):
            raise AssertionError("the build must not start")
        assert [status.state for status in preparation.statuses] == ["waiting"]

    def test_no_thread_starts_without_engines_to_build(self, single: Path) -> None:
        preparation, _ = prepared(Bundle.open(single / "a"), CPU)
        before = threading.active_count()
        preparation.start({})
        assert threading.active_count() == before
        assert preparation.join(0.0)


# `tokenfold serve` with stand-in backends.
SERVER = """
import sys
from pathlib import Path
from tokenfold.service import core, server
from tokenfold.service.scheduling.backends.kinds import CPU
from tests.service.engined import Engined

engined = Engined(Path(sys.argv[1]))
engined.mode["colours"] = "hangs"
core.all_kinds = lambda _: (engined.kind, CPU)
sys.exit(server.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("configured", ["auto", "tensorrt"])
def test_sigterm_during_a_build_ends_the_server_and_the_builder(
    configured: str, single: Path, engined: Engined
) -> None:
    line = [sys.executable, "-c", SERVER, str(engined.folder), f"--bundles={single}", "--port=0"]
    line += [f"--backend={configured}", f"--data-dir={single / standin.DATA}", "--log-format=text"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stderr is not None
        until(lambda: len(engined.processes()) == 2, 30)
        running.send_signal(signal.SIGTERM)
        # The builder would take ten minutes.
        log = running.stderr.read()
        assert running.wait(20) == 0, log
        until(lambda: not engined.processes())
    assert "given up: the server is shutting down" in log
    assert "Traceback" not in log
    assert "ERROR" not in log
    assert not list(engined.folder.glob("*.engine"))
