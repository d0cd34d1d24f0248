"""EngineStore that are built while another backend serves, or before the start where none may."""

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
    """Two models."""
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a", name="colours")
    bundle(root / "b", name="plain")
    return root


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One."""
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
    found = response.json()
    if response.status_code == 200:
        assert found["status"] == "ok"
    else:
        problem(response, 503, "starting")
    listed: list[dict[str, Any]] = found.get("engines", [])
    for entry in listed:
        EngineStatus.model_validate(entry)
    return listed


def states(remote: Remote) -> list[str]:
    return [entry["state"] for entry in engines(remote)]


def progress(remote: Remote) -> dict[str, float]:
    """Of each model's engines, as far as they are told of."""
    found = re.findall(
        rf'^{PROGRESS}\{{backend="tensorrt",model="(\w+)"\}} (\S+)$',
        remote.get("/metrics").text,
        re.MULTILINE,
    )
    return {model: float(done) for model, done in found}


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == level]


class Load:
    """Requests without a pause, from several threads, until it ends; each must be answered."""

    def __init__(self, remote: Remote, threads: int = 8) -> None:
        self._remote = remote
        self._end = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self._futures = [self._pool.submit(self._ask, at) for at in range(threads)]

    def _ask(self, at: int) -> int:
        names = {"red": "red", "lime": "green", "blue": "blue"}
        asked = 0
        while not self._end.is_set():
            name = list(names)[(at + asked) % 3]
            level = ["exact", "balanced", "fast"][asked % 3]
            response = self._remote.classify(picture(name), level=level, model="colours")
            assert response.status_code == 200, response.text
            (found,) = response.json()["results"]
            assert found["predictions"][0]["label"] == names[name]
            asked += 1
        return asked

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.asked = [future.result(30) for future in self._futures]
        self._pool.shutdown()


class TestInTheBackground:
    def test_another_serves_meanwhile(
        self, bundles: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        engined.gate.touch()
        second = Seconds()
        found = app(bundles, engined.kind, second.kind, CPU)
        with serving(found) as remote:
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
            # What ran them is closed, for its memory.
            until(lambda: [made.closed for made in second.made] == [1, 1])
            assert [made.closed for made in engined.made] == [0, 0]
            self._check_costs(found.state.core)
        said = [line for line in messages(caplog, logging.INFO) if line.startswith("colours")]
        assert said[0] == "colours: backend tensorrt is not used yet: its engines are not built"
        assert "colours: engines for backend tensorrt are being built" in said
        tenths = [line for line in said if line.endswith("%")]
        assert tenths == [
            f"colours: engines for backend tensorrt are built to {tenth}0 %"
            for tenth in range(1, 11)
        ]
        (built,) = [
            one
            for one in caplog.records
            if one.getMessage() == "colours: engines for backend tensorrt are built"
        ]
        assert built.__dict__["seconds"] > 0
        assert said[-2:] == [
            "colours: backend tensorrt passed its self-test",
            "colours: tensorrt takes over from cuda",
        ]
        assert not messages(caplog, logging.ERROR)

    @staticmethod
    def _check_costs(engine: Core) -> None:
        """Times and shares are those of what runs it."""
        model = engine.catalog.get("colours")
        assert model.backend.max_concurrent_runs == 2
        assert engine.dispatcher.share(model) == model.costs.share

    def test_the_times_follow(
        self, one: Path, engined: Engined, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engined.gate.touch()
        found = app(one, engined.kind, CPU)
        with serving(found) as remote:
            engine = found.state.core
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
    def test_no_request_is_lost_when_it_takes_over(
        self, one: Path, engined: Engined, name: str
    ) -> None:
        engined.gate.touch()
        second = Seconds(name, device=name)
        with serving(app(one, engined.kind, second.kind, CPU)) as remote:
            with Load(remote) as load:
                time.sleep(0.3)
                assert backend(remote) == name
                engined.gate.unlink()
                until(lambda: backend(remote) == "tensorrt", 30)
                ran = len(engined.made[0].ran)
                until(lambda: len(engined.made[0].ran) > ran + 20, 30)
            assert min(load.asked) > 0
            # Each was asserted to run nothing once it is closed.
            assert [made.closed for made in second.made] == [1]
            for given_up in ("tensorrt", "cuda", "cpu"):
                assert remote.sample(FAILURES, model="colours", backend=given_up) == 0

    def test_engines_that_are_there_are_used(self, bundles: Path, engined: Engined) -> None:
        engined.build(Bundle.open(bundles / "a"))
        engined.mode["plain"] = "hangs"
        second = Seconds()
        with serving(app(bundles, engined.kind, second.kind, CPU)) as remote:
            assert [backend(remote, name) for name in ("colours", "plain")] == ["tensorrt", "cuda"]
            assert [entry["model"] for entry in engines(remote)] == ["plain"]
            assert len(second.made) == 1

    def test_nothing_to_do(self, one: Path, engined: Engined) -> None:
        engined.build(Bundle.open(one / "a"))
        with serving(app(one, engined.kind, CPU)) as remote:
            assert remote.get("/startupz").json() == {"status": "ok"}
            assert PROGRESS + "{" not in remote.get("/metrics").text
            assert not engined.prepared

    def test_a_second_start_builds_nothing(self, one: Path, engined: Engined) -> None:
        with serving(app(one, engined.kind, CPU)) as remote:
            until(lambda: states(remote) == ["serving"])
        with serving(app(one, engined.kind, CPU)) as remote:
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
    def test_a_build_that_fails(
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

    def test_a_build_that_is_killed(self, one: Path, engined: Engined) -> None:
        engined.gate.touch()
        with serving(app(one, engined.kind, CPU)) as remote:
            until(lambda: engines(remote)[0].get("phase") == "step 9")
            (pid,) = engined.processes()
            os.kill(pid, signal.SIGKILL)
            until(lambda: states(remote) == ["failed"])
            assert engines(remote)[0]["why"].startswith("the builder was killed by SIGKILL")
            assert backend(remote) == "cpu"
            assert remote.classify(picture()).status_code == 200

    def test_a_self_test_that_fails(
        self, bundles: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        engined.wrong = 1.0
        second = Seconds()
        with serving(app(bundles, engined.kind, second.kind, CPU)) as remote, Load(remote):
            until(lambda: states(remote) == ["failed", "failed"], 30)
            assert [backend(remote, name) for name in ("colours", "plain")] == ["cuda", "cuda"]
            assert [made.closed for made in engined.made] == [1, 1]
            assert [made.closed for made in second.made] == [0, 0]
            assert [entry["done"] for entry in engines(remote)] == [1.0, 1.0]
            assert "differs from the CPU by more than" in engines(remote)[0]["why"]
            assert progress(remote) == {}
            assert remote.sample(FAILURES, model="plain", backend="tensorrt") == 1
        said = messages(caplog, logging.ERROR)
        assert [line.partition(": differs from the CPU")[0] for line in said] == [
            "colours: backend tensorrt is not used",
            "plain: backend tensorrt is not used",
        ]

    def test_engines_that_do_not_load(self, one: Path, engined: Engined) -> None:
        engined.error = MemoryError()
        with serving(app(one, engined.kind, CPU)) as remote:
            until(lambda: states(remote) == ["failed"])
            assert engines(remote)[0]["why"] == "MemoryError"
            assert backend(remote) == "cpu"

    def test_a_folder_that_cannot_be_read(
        self, one: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        def unprepared(_: Bundle) -> list[str]:
            raise PermissionError("not yours")

        kind = StubKind("tensorrt", "cuda", engined.kind.load, unprepared=unprepared)
        with serving(app(one, kind, CPU)) as remote:
            assert backend(remote) == "cpu"
            assert engines(remote) == []
            assert remote.sample(FAILURES, model="colours", backend="tensorrt") == 1
        assert messages(caplog, logging.ERROR) == [
            "colours: backend tensorrt is not used: not yours"
        ]
        by_force = app(one, kind, CPU, backend="tensorrt")
        with serving(by_force):
            assert isinstance(by_force.state.core.failed, PermissionError)


class TestLaterFailures:
    def test_it_falls_back_twice(self, one: Path, engined: Engined) -> None:
        second = Seconds()
        with serving(app(one, engined.kind, second.kind, CPU)) as remote, Load(remote):
            until(lambda: states(remote) == ["serving"], 30)
            engined.fails = lambda _: True
            until(lambda: backend(remote) == "cuda", 30)
            # What ran it before was closed when it was not needed, and is loaded again.
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

    def test_what_served_meanwhile_has_failed_by_then(self, one: Path, engined: Engined) -> None:
        engined.gate.touch()
        second = Seconds()
        with serving(app(one, engined.kind, second.kind, CPU)) as remote:
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

    def test_it_takes_over_while_another_fails(self, one: Path, engined: Engined) -> None:
        """Runs of what served meanwhile fail at the moment it is relieved."""
        engined.gate.touch()
        second = Seconds()
        with serving(app(one, engined.kind, second.kind, CPU)) as remote:
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
                    (found,) = future.result().json()["results"]
                    assert found["predictions"][0]["label"] == "blue"
            # The fault was that of the other alone, which is not asked again.
            assert backend(remote) == "tensorrt"
            assert remote.sample(FAILURES, model="colours", backend="cuda") == 1
            assert remote.sample(FAILURES, model="colours", backend="tensorrt") == 0
            until(lambda: second.made[0].closed == 1)
            engined.fails = lambda _: True
            assert remote.classify(picture()).status_code == 200
            assert backend(remote) == "cpu"
            assert second.loaded == 1


class TestShutdown:
    def test_during_a_build(
        self, bundles: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        engined.mode["colours"] = "hangs"
        found = app(bundles, engined.kind, CPU)
        with serving(found) as remote:
            until(lambda: len(engined.processes()) == 2)
            assert remote.classify(picture()).status_code == 200
            begun = time.monotonic()
        assert found.state.core.join_loader()
        until(lambda: not engined.processes())
        assert time.monotonic() - begun < 10
        assert engined.prepared == ["colours"]
        assert not list(engined.folder.glob("*.engine"))
        assert not messages(caplog, logging.ERROR)
        assert "engines given up: the server is shutting down" in messages(caplog, logging.INFO)

    def test_a_drain_ends_it_before_the_last_answer(self, one: Path, engined: Engined) -> None:
        engined.mode["colours"] = "hangs"
        second = Seconds()
        found = app(one, engined.kind, second.kind, CPU)
        with serving(found) as remote, ThreadPoolExecutor(2) as pool:
            until(lambda: len(engined.processes()) == 2)
            held = threading.Event()

            def slow(_: object) -> bool:
                assert held.wait(20)
                return False

            second.fails = slow
            asked = pool.submit(remote.classify, picture())
            until(lambda: second.made[0].running == 1)
            drained = pool.submit(lambda: asyncio.run(found.state.core.drain()))
            until(lambda: not engined.processes())
            assert not asked.done()
            held.set()
            assert asked.result().status_code == 200
            drained.result(10)
            until(lambda: progress(remote) == {})

    def test_during_the_self_test(self, one: Path, engined: Engined) -> None:
        begun, held = threading.Event(), threading.Event()

        def fails(_: object) -> bool:
            begun.set()
            assert held.wait(20)
            return False

        engined.fails = fails
        found = app(one, engined.kind, CPU)
        with serving(found) as remote:
            assert begun.wait(20)
            until(lambda: states(remote) == ["testing"])
        held.set()
        assert found.state.core.join_loader()
        # It is not used any more, and given back.
        assert engined.made[0].closed == 1
        assert found.state.core.catalog.get("colours").backend.kind is CPU


class TestByForce:
    def test_it_is_built_before_the_start(self, bundles: Path, engined: Engined) -> None:
        engined.gate.touch()
        found = app(bundles, engined.kind, CPU, backend="tensorrt")
        seen: dict[str, Any] = {}
        probe = threading.Thread(target=self._probe, args=(found, engined, seen))
        probe.start()
        with serving(found, patience=30) as remote:
            probe.join()
            assert [backend(remote, name) for name in ("colours", "plain")] == ["tensorrt"] * 2
            assert states(remote) == ["serving", "serving"]
            assert remote.classify(picture()).status_code == 200
            assert [made.closed for made in engined.made] == [0, 0]
        assert seen["states"] == ["building", "waiting"]
        assert seen["refused"] == [503, 503, 200]

    @staticmethod
    def _probe(found: Any, engined: Engined, seen: dict[str, Any]) -> None:
        # `serving` returns when the models are loaded: look in before.
        until(lambda: hasattr(found.state, "port"))
        with Remote(f"http://127.0.0.1:{found.state.port}") as remote:
            until(lambda: engines(remote) and engines(remote)[0]["done"] > 0.4)
            seen["states"] = states(remote)
            seen["refused"] = [
                remote.get("/startupz").status_code,
                remote.classify(picture()).status_code,
                remote.get("/livez").status_code,
            ]
        engined.gate.unlink()

    def test_a_build_that_fails_ends_the_server(self, bundles: Path, engined: Engined) -> None:
        engined.mode["plain"] = "fails"
        failed = threading.Event()
        found = create_app(
            standin.settings(bundles, backend="tensorrt"),
            kinds=[engined.kind, CPU],
            on_failure=failed.set,
        )
        with serving(found) as remote:
            assert failed.is_set()
            assert isinstance(found.state.core.failed, BuildError)
            assert states(remote) == ["serving", "failed"]

    def test_a_self_test_that_fails_ends_it_too(self, one: Path, engined: Engined) -> None:
        engined.wrong = 1.0
        found = app(one, engined.kind, CPU, backend="tensorrt")
        with serving(found) as remote:
            assert isinstance(found.state.core.failed, SelfTestError)
            (entry,) = engines(remote)
            assert entry["state"] == "failed"
            assert "differs from the CPU by more than" in entry["why"]

    def test_a_shutdown_during_the_build_is_no_failure(
        self, one: Path, engined: Engined, caplog: pytest.LogCaptureFixture
    ) -> None:
        engined.mode["colours"] = "hangs"
        failures: list[None] = []
        engine = Core(
            standin.settings(one, backend="tensorrt"),
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
    found = Preparation(BackendMetrics(CollectorRegistry()))
    return found, found.survey(bundle, kinds)


def unbuilt(name: str, *, prepare: Any = None) -> BackendKind:
    def load(_: Bundle) -> Any:
        raise AssertionError("it was not to be loaded")

    more = {} if prepare is None else {"prepare": prepare}
    return StubKind(name, "cuda", load, unprepared=lambda _: ["model"], **more)


class TestAlone:
    def test_who_runs_at_first(self, one: Path) -> None:
        found = Bundle.open(one / "a")
        better, worse, ready = unbuilt("better"), unbuilt("worse"), Seconds("ready").kind
        for kinds, first, listed in (
            ([ready, CPU], [ready, CPU], []),
            ([better, ready, CPU], [ready, CPU], ["better"]),
            # One that is no better than what is ready is not worth it.
            ([ready, better, CPU], [ready, CPU], []),
            ([better, worse, CPU], [CPU], ["better"]),
            ([better], [better], ["better"]),
            ([better, worse], [better], ["better"]),
        ):
            preparation, now = prepared(found, *kinds)
            assert now == first
            assert [status.backend for status in preparation.statuses] == listed

    def test_nothing_is_built_before_the_start_that_can_wait(self, one: Path) -> None:
        found = Bundle.open(one / "a")
        preparation, _ = prepared(found, unbuilt("better"), CPU)
        with preparation.before(found):
            pass
        assert [status.state for status in preparation.statuses] == ["waiting"]

    def test_progress_does_not_go_back(self, one: Path) -> None:
        found = Bundle.open(one / "a")
        seen: list[tuple[float, str | None]] = []

        def prepare(_: Bundle, told: ProgressCallback, __: threading.Event) -> None:
            for done, engine in ((0.5, "a"), (0.1, "b"), (0.7, "b")):
                told(Progress(done, engine, "working"))
                (status,) = preparation.statuses
                seen.append((status.done, status.engine))

        preparation, _ = prepared(found, unbuilt("better", prepare=prepare))
        with preparation.before(found):
            (status,) = preparation.statuses
            assert (status.state, status.done, status.engine) == ("testing", 1.0, None)
        assert [status.state for status in preparation.statuses] == ["serving"]
        assert seen == [(0.5, "a"), (0.5, "b"), (0.7, "b")]

    def test_it_does_not_begin_after_the_end(self, one: Path) -> None:
        found = Bundle.open(one / "a")
        preparation, _ = prepared(found, unbuilt("better"))
        preparation.stop()
        with pytest.raises(StoppedError), preparation.before(found):
            raise AssertionError("it was to be built first")
        assert [status.state for status in preparation.statuses] == ["waiting"]

    def test_there_is_no_thread_without_work(self, one: Path) -> None:
        preparation, _ = prepared(Bundle.open(one / "a"), CPU)
        before = threading.active_count()
        preparation.start({})
        assert threading.active_count() == before
        assert preparation.join(0.0)


# `tokenfold serve`, but for its backends.
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


@pytest.mark.parametrize("asked", ["auto", "tensorrt"])
def test_sigterm_during_a_build(asked: str, one: Path, engined: Engined) -> None:
    line = [sys.executable, "-c", SERVER, str(engined.folder), f"--bundles={one}", "--port=0"]
    line += [f"--backend={asked}", f"--data-dir={one / standin.DATA}", "--log-format=text"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stderr is not None
        until(lambda: len(engined.processes()) == 2, 30)
        running.send_signal(signal.SIGTERM)
        # The builder would take ten minutes.
        said = running.stderr.read()
        assert running.wait(20) == 0, said
        until(lambda: not engined.processes())
    assert "given up: the server is shutting down" in said
    assert "Traceback" not in said
    assert "ERROR" not in said
    assert not list(engined.folder.glob("*.engine"))
