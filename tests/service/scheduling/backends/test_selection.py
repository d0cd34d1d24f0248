"""Tests of the selection of a model's backend: by availability, self-test or setting."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.service import standin
from tests.service.scheduling.backends.stub_kind import StubKind
from tests.service.second import Seconds
from tests.service.standin import Remote, bundle, picture, process, serving
from tokenfold.bundle.bundle import Bundle
from tokenfold.service import server
from tokenfold.service.app import create_app
from tokenfold.service.scheduling.backends import kinds, selection
from tokenfold.service.scheduling.backends.kinds import CPU, CUDA, BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics
from tokenfold.service.scheduling.backends.selection import BackendError
from tokenfold.service.scheduling.backends.selftest import SelfTestError
from tokenfold.service.settings import DEMO

NO_GPU = CUDA.missing() is not None


def never(name: str, *, missing: str | None = None, unfit: str | None = None) -> BackendKind:
    def load(_: Bundle) -> None:
        raise AssertionError("the backend must not be loaded")

    return StubKind(name, "cuda", load, missing, unfit)  # type: ignore[arg-type]


def metrics() -> BackendMetrics:
    return BackendMetrics(CollectorRegistry())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a")
    return root


class TestUsable:
    def test_auto_lists_every_available_backend_in_order(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        available, absent = never("here"), never("gone", missing="no driver")
        assert selection.usable([absent, available, CPU], "auto") == [available, CPU]
        (record,) = caplog.records
        assert record.levelno == logging.INFO
        assert record.getMessage() == "backend gone is not used: no driver"

    def test_a_named_backend_is_used_alone_or_refused(self) -> None:
        available, absent = never("here"), never("gone", missing="no driver")
        assert selection.usable([absent, available, CPU], "cpu") == [CPU]
        assert selection.usable([absent, available, CPU], "here") == [available]
        with pytest.raises(BackendError, match="backend gone: no driver"):
            selection.usable([absent, available, CPU], "gone")
        with pytest.raises(BackendError, match="no backend 'other'"):
            selection.usable([absent, available, CPU], "other")

    @pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
    def test_without_a_gpu_only_the_cpu_is_usable(self, caplog: pytest.LogCaptureFixture) -> None:
        assert selection.usable(kinds.all_kinds(Path("engines")), "auto") == [CPU]
        assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]


class TestFitting:
    def test_int8_bundles_run_on_the_cpu_alone(self, bundles: Path) -> None:
        shipped = DEMO / "cifar10-int8"
        quantised, plain = Bundle.open(shipped), Bundle.open(bundles / "a")
        assert selection.fitting(quantised, [CUDA, CPU]) == [CPU]
        assert selection.fitting(plain, [CUDA, CPU]) == [CUDA, CPU]
        with pytest.raises(BackendError, match="cifar10-int8 is an int8 bundle"):
            selection.fitting(quantised, [CUDA])


class TestOpened:
    def test_the_first_backend_that_passes_its_self_test_is_used(
        self, bundles: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        good = Seconds("good")
        chain = selection.opened(Bundle.open(bundles / "a"), [good.kind, CPU], metrics=metrics())
        assert chain.kind is good.kind
        assert (chain.max_concurrent_runs, chain.native) == (2, good.made[0].native)
        assert not good.made[0].closed
        (record,) = caplog.records
        assert record.getMessage() == "colours: backend good passed its self-test"
        assert set(record.__dict__["differences"]) == {"classify", "classify together"}

    def test_backends_that_fail_are_skipped_and_counted(
        self, bundles: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        wrong, dead, broken, good = (Seconds(name) for name in ("wrong", "dead", "broken", "good"))
        wrong.wrong = 1.0
        dead.fails = lambda _: True
        broken.error = MemoryError("no memory")
        order = [seconds.kind for seconds in (wrong, dead, broken, good)]
        registry = CollectorRegistry()
        chain = selection.opened(
            Bundle.open(bundles / "a"), [*order, CPU], metrics=BackendMetrics(registry)
        )
        assert chain.kind is good.kind
        assert [backend.closed for backend in wrong.made + dead.made] == [1, 1]
        failures = "tokenfold_backend_failures_total"
        for name, count in {"wrong": 1, "dead": 1, "broken": 1, "good": 0}.items():
            labels = {"model": "colours", "backend": name}
            assert registry.get_sample_value(failures, labels) == count
            used = registry.get_sample_value("tokenfold_model_backend", labels)
            assert used == (name == "good")
        error_lines = [
            record.getMessage() for record in caplog.records if record.levelname == "ERROR"
        ]
        assert len(error_lines) == 3
        assert (
            "backend wrong is not used: differs from the CPU by more than 0.001: classify"
            in error_lines[0]
        )
        assert "the device is gone" in error_lines[1]
        assert "no memory" in error_lines[2]

    def test_a_failed_self_test_of_the_only_backend_is_an_error(self, bundles: Path) -> None:
        wrong = Seconds()
        wrong.wrong = 1.0
        with pytest.raises(SelfTestError):
            selection.opened(Bundle.open(bundles / "a"), [wrong.kind], metrics=metrics())

    def test_the_cpu_has_no_self_test(self, bundles: Path) -> None:
        wrong = Seconds("cpu", device="cpu")
        wrong.wrong = 1.0
        selection.opened(Bundle.open(bundles / "a"), [wrong.kind], metrics=metrics())


class TestServer:
    def _backend_and_device(self, remote: Remote) -> tuple[str, str]:
        model = remote.get("/v1/models/colours").json()
        return model["backend"], model["device"]

    def test_a_model_is_served_on_another_device(self, bundles: Path) -> None:
        second = Seconds()
        app = create_app(standin.settings(bundles), kinds=[second.kind, CPU])
        with serving(app) as remote:
            assert self._backend_and_device(remote) == ("cuda", "cuda")
            response = remote.classify(*[picture("blue")] * 9)
            results = response.json()["results"]
            assert [result["predictions"][0]["label"] for result in results] == ["blue"] * 9
            # Batches form while two runs are in flight.
            assert max(result["batch_size"] for result in results) > 1
            (backend,) = second.made
            assert max(backend.ran) > 1
            assert backend.max_running <= 2
            assert remote.sample("tokenfold_model_backend", model="colours", backend="cuda") == 1
            costs = app.state.core.catalog.get("colours").costs
            assert 0 < costs.share <= 1

    def test_a_backend_that_fails_its_self_test_is_replaced_by_the_cpu(self, bundles: Path) -> None:
        second = Seconds()
        second.wrong = 1.0
        app = create_app(standin.settings(bundles), kinds=[second.kind, CPU])
        with serving(app) as remote:
            assert self._backend_and_device(remote) == ("cpu", "cpu")
            labels = {"model": "colours", "backend": "cuda"}
            assert remote.sample("tokenfold_backend_failures_total", **labels) == 1
            assert remote.classify(picture()).status_code == 200

    def test_a_configured_backend_that_fails_its_self_test_fails_the_start(
        self, bundles: Path
    ) -> None:
        second = Seconds()
        second.wrong = 1.0
        app = create_app(standin.settings(bundles, backend="cuda"), kinds=[second.kind, CPU])
        with serving(app):
            assert isinstance(app.state.core.failed, SelfTestError)

    @pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
    def test_a_configured_gpu_that_is_missing_is_an_error(
        self, bundles: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert server.main([f"--bundles={bundles}", "--backend=cuda", "--port=0"]) == 1
        assert "tokenfold serve: backend cuda: " in capsys.readouterr().err

    def test_the_log_names_the_backend_of_each_model(self, bundles: Path) -> None:
        with process(bundles, backend="cpu") as (_, remote):
            lines = [json.loads(line) for line in remote.log]  # type: ignore[attr-defined]
            (loaded,) = [line for line in lines if line["message"] == "loaded colours"]
            assert (loaded["backend"], loaded["device"]) == ("cpu", "cpu")
            assert not [line for line in lines if line["level"] not in ("info", "INFO")]
