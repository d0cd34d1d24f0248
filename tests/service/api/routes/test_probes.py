"""Tests of the probes, and of HEAD requests."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.service import standin
from tests.service.api.classification import results
from tests.service.gated import Gated
from tests.service.scheduling.backends.stub_kind import StubKind
from tests.service.standin import Remote, picture, problem, serving, until
from tokenfold.bundle.bundle import Bundle
from tokenfold.inference import sessions
from tokenfold.inference.backend import Backend
from tokenfold.service.app import create_app


def test_probes_of_a_ready_server_return_ok(client: Remote) -> None:
    for path in ("/livez", "/readyz", "/startupz"):
        assert client.get(path).json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/readyz", "/startupz", "/metrics", "/v1/models", "/v1/models/plain"]
)
def test_head_returns_the_headers_of_get(client: Remote, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]
    assert not head.content
    if path not in ("/metrics", "/v1/models", "/v1/models/plain"):  # these change
        assert head.headers["content-length"] == get.headers["content-length"]
    assert client.delete(path).headers["allow"] == "GET, HEAD"


class TestStarting:
    def test_the_server_is_not_ready_until_models_are_warm(self, bundles: Path) -> None:
        gate = threading.Event()

        def load(opened: Bundle) -> Backend:
            gate.wait(10)
            return sessions.load(opened)

        app = create_app(standin.settings(bundles), kinds=[StubKind("cpu", "cpu", load)])
        release = threading.Thread(target=self._probe, args=(app, gate))
        release.start()
        with serving(app) as remote:
            release.join()
            assert self.statuses == [503, 503, 200, 503, 503]
            assert remote.get("/readyz").status_code == 200
            assert remote.get("/startupz").status_code == 200
            assert results(remote.classify(picture()))

    def _probe(self, app: Any, gate: threading.Event) -> None:
        # `serving` returns when the models are loaded; this runs before.
        self.statuses: list[int] = []
        until(lambda: hasattr(app.state, "port"))
        with Remote(f"http://127.0.0.1:{app.state.port}") as remote:
            self.statuses = [
                remote.get("/readyz").status_code,
                remote.get("/startupz").status_code,
                remote.get("/livez").status_code,
                remote.classify(picture()).status_code,
                remote.get("/v1/models").status_code,
            ]
        gate.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_fails_the_probes(bundles: Path) -> None:
    gated = Gated(bundles)
    with serving(gated.app) as remote:
        gated.backend.error = SystemExit()
        problem(remote.classify(picture()), 500, "internal")
        until(lambda: remote.get("/livez").status_code == 503)
        problem(remote.get("/livez"), 503, "worker-died")
        problem(remote.get("/readyz"), 503, "worker-died")
