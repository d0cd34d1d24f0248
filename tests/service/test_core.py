"""Tests of the server under load: full queue, deadlines, and callers that disconnect."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service import standin
from tests.service.api.classification import results
from tests.service.gated import Gated
from tests.service.scheduling.backends.stub_kind import StubKind
from tests.service.standin import WORKLOAD, bundle, picture, problem, serving, until
from tokenfold.bundle.bundle import Bundle
from tokenfold.bundle.workload import Plan
from tokenfold.inference.backend import Backend
from tokenfold.service.app import create_app
from tokenfold.service.scheduling.costs import Times


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a", name="colours", work=20)
    bundle(root / "b", name="plain", profile=False, levels={"exact": 0.0, "half": 0.5})
    return root


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


class TestUnderLoad:
    def test_a_full_queue_is_answered_with_503(
        self, bundles: Path, pool: ThreadPoolExecutor
    ) -> None:
        gated = Gated(bundles, queue_limit=3, max_items=3)
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            first = pool.submit(remote.classify, picture("red"))
            until(lambda: gated.backend.running == 1)
            waiting = pool.submit(remote.classify, picture("blue"), picture("lime"))
            until(lambda: remote.sample("tokenfold_queue_depth") == 2)
            refused = remote.classify(picture(), picture())
            problem(refused, 503, "queue-full")
            assert int(refused.headers["retry-after"]) >= 1
            gated.backend.gate.set()
            assert len(results(first.result())) == 1
            assert len(results(waiting.result())) == 2
            assert remote.sample("tokenfold_queue_depth") == 0
            counted = {"task": "classify", "model": "colours", "level": "exact"}
            assert remote.sample("tokenfold_requests_total", outcome="rejected", **counted) == 1

    def test_an_expired_request_is_answered_with_503(
        self, bundles: Path, pool: ThreadPoolExecutor
    ) -> None:
        gated = Gated(bundles, request_timeout=0.3)
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            ran = gated.backend.ran
            slow = [pool.submit(remote.classify, picture()) for _ in range(3)]
            for future in slow:
                refused = future.result()
                problem(refused, 503, "expired")
                assert int(refused.headers["retry-after"]) >= 1
            gated.backend.gate.set()
            assert results(remote.classify(picture()))
            # Requests that expired in the queue were never run.
            assert gated.backend.ran == ran + 2

    def test_requests_of_disconnected_callers_are_not_run(
        self, bundles: Path, pool: ThreadPoolExecutor
    ) -> None:
        gated = Gated(bundles)
        with serving(gated.app) as remote:
            gated.backend.gate.clear()
            ran = gated.backend.ran
            first = pool.submit(remote.classify, picture())
            until(lambda: gated.backend.running == 1)
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(
                        remote.url + "/v1/classify",
                        files={"image": ("a.png", picture())},
                        timeout=0.2,
                    )
            counted = {"task": "classify", "model": "colours", "level": "exact"}
            until(
                lambda: (
                    remote.sample("tokenfold_requests_total", outcome="abandoned", **counted) == 3
                )
            )
            assert remote.sample("tokenfold_queue_depth") == 0
            gated.backend.gate.set()
            assert results(first.result())
            assert gated.backend.ran == ran + 1

    def test_a_caller_that_disconnects_within_the_body_is_counted_as_abandoned(
        self, bundles: Path
    ) -> None:
        with serving(create_app(standin.settings(bundles))) as remote:
            port = int(remote.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(
                    b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
                    b"content-type: application/json\r\n\r\n{"
                )
            until(
                lambda: (
                    remote.sample(
                        "tokenfold_requests_total",
                        task="classify",
                        model="unknown",
                        level="unknown",
                        outcome="abandoned",
                    )
                    == 1
                )
            )

    def test_a_latency_budget_exceeded_by_the_queue_is_answered_with_503(
        self, bundles: Path, pool: ThreadPoolExecutor
    ) -> None:
        gated = Gated(bundles)
        with serving(gated.app) as remote:
            costs = gated.app.state.core.catalog.get("colours").costs
            durations = {
                name: self._seconds(gated, level.plan) for name, level in self._levels(gated)
            }
            known = {WORKLOAD.flops(level.plan): 0.1 for _, level in self._levels(gated)}
            costs.learn(Times(known))
            gated.backend.gate.clear()
            waiting = [pool.submit(remote.classify, picture()) for _ in range(5)]
            until(lambda: remote.sample("tokenfold_queue_depth") == 4)
            refused = remote.classify(picture(), max_latency_ms=150)
            problem(refused, 503, "deadline")
            gated.backend.gate.set()
            assert all(results(future.result()) for future in waiting)
            assert durations["fast"] < durations["exact"]

    @staticmethod
    def _seconds(gated: Gated, plan: Plan) -> float:
        model = gated.app.state.core.catalog.get("colours")
        return float(model.costs.seconds((model.levels.work(plan),)))

    @staticmethod
    def _levels(gated: Gated) -> Any:
        return gated.app.state.core.catalog.get("colours").levels.levels.items()


class TestStarting:
    def test_a_model_that_cannot_be_loaded_fails_the_start(
        self, bundles: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        failed = threading.Event()

        def load(_: Bundle) -> Backend:
            raise RuntimeError("no such op")

        app = create_app(
            standin.settings(bundles),
            kinds=[StubKind("cpu", "cpu", load)],
            on_failure=failed.set,
        )
        with serving(app) as remote:
            assert failed.is_set()
            problem(remote.get("/readyz"), 503, "starting")
        assert "no such op" in caplog.text

    def test_a_number_of_labels_that_differs_from_the_graph_fails_the_start(
        self, tmp_path: Path
    ) -> None:
        bundle(tmp_path / "a", labels=("red", "green"))
        app = create_app(standin.settings(tmp_path))
        with serving(app):
            assert "3 outputs and 2 labels" in str(app.state.core.failed)
