"""Which backend runs a model: by what is here, by the self-test, or by force."""

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
from tokenfold.service.scheduling.backends import choice, kinds
from tokenfold.service.scheduling.backends.choice import BackendError
from tokenfold.service.scheduling.backends.kinds import CPU, CUDA, BackendKind
from tokenfold.service.scheduling.backends.metrics import BackendMetrics
from tokenfold.service.scheduling.backends.selftest import SelfTestError
from tokenfold.service.settings import DEMO

NO_GPU = CUDA.missing() is not None


def never(name: str, *, missing: str | None = None, unfit: str | None = None) -> BackendKind:
    def load(_: Bundle) -> None:
        raise AssertionError("it was not to be loaded")

    return StubKind(name, "cuda", load, missing, unfit)  # type: ignore[arg-type]


def metrics() -> BackendMetrics:
    return BackendMetrics(CollectorRegistry())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a")
    return root


class TestUsable:
    def test_all_that_are_here_in_order(self, caplog: pytest.LogCaptureFixture) -> None:
        here, gone = never("here"), never("gone", missing="no driver")
        assert choice.usable([gone, here, CPU], "auto") == [here, CPU]
        (record,) = caplog.records
        assert record.levelno == logging.INFO
        assert record.getMessage() == "backend gone is not used: no driver"

    def test_one_by_force(self) -> None:
        here, gone = never("here"), never("gone", missing="no driver")
        assert choice.usable([gone, here, CPU], "cpu") == [CPU]
        assert choice.usable([gone, here, CPU], "here") == [here]
        with pytest.raises(BackendError, match="backend gone: no driver"):
            choice.usable([gone, here, CPU], "gone")
        with pytest.raises(BackendError, match="no backend 'other'"):
            choice.usable([gone, here, CPU], "other")

    @pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
    def test_here_that_is_the_cpu(self, caplog: pytest.LogCaptureFixture) -> None:
        assert choice.usable(kinds.all_kinds(Path("engines")), "auto") == [CPU]
        assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]


class TestFitting:
    def test_int8_is_for_the_cpu(self, bundles: Path) -> None:
        shipped = DEMO / "cifar10-int8"
        quantised, plain = Bundle.open(shipped), Bundle.open(bundles / "a")
        assert choice.fitting(quantised, [CUDA, CPU]) == [CPU]
        assert choice.fitting(plain, [CUDA, CPU]) == [CUDA, CPU]
        with pytest.raises(BackendError, match="cifar10-int8 is an int8 bundle"):
            choice.fitting(quantised, [CUDA])


class TestOpened:
    def test_the_first_that_passes(self, bundles: Path, caplog: pytest.LogCaptureFixture) -> None:
        good = Seconds("good")
        found = choice.opened(Bundle.open(bundles / "a"), [good.kind, CPU], metrics=metrics())
        assert found.kind is good.kind
        assert (found.max_concurrent_runs, found.native) == (2, good.made[0].native)
        assert not good.made[0].closed
        (record,) = caplog.records
        assert record.getMessage() == "colours: backend good passed its self-test"
        assert set(record.__dict__["differences"]) == {"classify", "classify together"}

    def test_what_fails_is_passed_over(
        self, bundles: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        wrong, dead, broken, good = (Seconds(name) for name in ("wrong", "dead", "broken", "good"))
        wrong.wrong = 1.0
        dead.fails = lambda _: True
        broken.error = MemoryError("no memory")
        order = [seconds.kind for seconds in (wrong, dead, broken, good)]
        registry = CollectorRegistry()
        found = choice.opened(
            Bundle.open(bundles / "a"), [*order, CPU], metrics=BackendMetrics(registry)
        )
        assert found.kind is good.kind
        assert [made.closed for made in wrong.made + dead.made] == [1, 1]
        failures = "tokenfold_backend_failures_total"
        for name, count in {"wrong": 1, "dead": 1, "broken": 1, "good": 0}.items():
            labels = {"model": "colours", "backend": name}
            assert registry.get_sample_value(failures, labels) == count
            used = registry.get_sample_value("tokenfold_model_backend", labels)
            assert used == (name == "good")
        said = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
        assert len(said) == 3
        assert (
            "backend wrong is not used: differs from the CPU by more than 0.001: classify"
            in said[0]
        )
        assert "the device is gone" in said[1]
        assert "no memory" in said[2]

    def test_by_force_it_fails(self, bundles: Path) -> None:
        wrong = Seconds()
        wrong.wrong = 1.0
        with pytest.raises(SelfTestError):
            choice.opened(Bundle.open(bundles / "a"), [wrong.kind], metrics=metrics())

    def test_the_cpu_is_not_held_against_itself(self, bundles: Path) -> None:
        wrong = Seconds("cpu", device="cpu")
        wrong.wrong = 1.0
        choice.opened(Bundle.open(bundles / "a"), [wrong.kind], metrics=metrics())


class TestServer:
    def _asked(self, remote: Remote) -> tuple[str, str]:
        found = remote.get("/v1/models/colours").json()
        return found["backend"], found["device"]

    def test_a_model_on_another_device(self, bundles: Path) -> None:
        second = Seconds()
        app = create_app(standin.settings(bundles), kinds=[second.kind, CPU])
        with serving(app) as remote:
            assert self._asked(remote) == ("cuda", "cuda")
            response = remote.classify(*[picture("blue")] * 9)
            results = response.json()["results"]
            assert [one["predictions"][0]["label"] for one in results] == ["blue"] * 9
            # Batches form while two runs are on their way.
            assert max(one["batch_size"] for one in results) > 1
            (made,) = second.made
            assert max(made.ran) > 1
            assert made.max_running <= 2
            assert remote.sample("tokenfold_model_backend", model="colours", backend="cuda") == 1
            costs = app.state.core.catalog.get("colours").costs
            assert 0 < costs.share <= 1

    def test_one_that_fails_its_self_test(self, bundles: Path) -> None:
        second = Seconds()
        second.wrong = 1.0
        app = create_app(standin.settings(bundles), kinds=[second.kind, CPU])
        with serving(app) as remote:
            assert self._asked(remote) == ("cpu", "cpu")
            labels = {"model": "colours", "backend": "cuda"}
            assert remote.sample("tokenfold_backend_failures_total", **labels) == 1
            assert remote.classify(picture()).status_code == 200

    def test_one_that_is_asked_for_and_fails(self, bundles: Path) -> None:
        second = Seconds()
        second.wrong = 1.0
        app = create_app(standin.settings(bundles, backend="cuda"), kinds=[second.kind, CPU])
        with serving(app):
            assert isinstance(app.state.core.failed, SelfTestError)

    @pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
    def test_a_gpu_that_is_not_here(
        self, bundles: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert server.main([f"--bundles={bundles}", "--backend=cuda", "--port=0"]) == 1
        assert "tokenfold serve: backend cuda: " in capsys.readouterr().err

    def test_the_log_says_what_runs(self, bundles: Path) -> None:
        with process(bundles, backend="cpu") as (_, remote):
            lines = [json.loads(line) for line in remote.log]  # type: ignore[attr-defined]
            (loaded,) = [line for line in lines if line["message"] == "loaded colours"]
            assert (loaded["backend"], loaded["device"]) == ("cpu", "cpu")
            assert not [line for line in lines if line["level"] not in ("info", "INFO")]
