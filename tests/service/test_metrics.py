"""Tests of the Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import standin
from tests.service.standin import Remote, bundle, picture, serving
from tokenfold.service.app import create_app


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    bundle(root / "a", name="colours", work=20)
    bundle(root / "b", name="plain", profile=False, levels={"exact": 0.0, "half": 0.5})
    return root


@pytest.fixture(scope="module")
def client(bundles: Path) -> Iterator[Remote]:
    with serving(create_app(standin.settings(bundles, max_items=4))) as remote:
        yield remote


class TestMetrics:
    def test_requests_are_counted_by_outcome_level_and_stage(self, bundles: Path) -> None:
        with serving(create_app(standin.settings(bundles))) as remote:
            assert remote.sample("tokenfold_images_total", task="classify") == 0
            remote.classify(picture(), picture("blue"), b"bad", level="fast")
            remote.classify(b"bad")
            remote.classify(picture(), level="turbo")
            remote.classify(picture(), model="x" * 1000)
            remote.classify(picture(), reduction=0.123)
            counted = {"task": "classify", "model": "colours"}
            total = "tokenfold_requests_total"
            assert remote.sample(total, level="fast", outcome="partial", **counted) == 1
            assert remote.sample(total, level="exact", outcome="invalid", **counted) == 1
            assert remote.sample(total, level="unknown", outcome="invalid", **counted) == 1
            assert remote.sample(total, level="custom", outcome="ok", **counted) == 1
            unknown = {"task": "classify", "model": "unknown", "level": "unknown"}
            assert remote.sample(total, outcome="invalid", **unknown) == 1
            duration = "tokenfold_request_duration_seconds_count"
            assert remote.sample(duration, level="fast", **counted) == 1
            for stage in ("decode", "queue", "infer", "post"):
                counted = {"task": "classify", "stage": stage}
                assert remote.sample("tokenfold_stage_duration_seconds_count", **counted) == 3
            assert remote.sample("tokenfold_images_total", task="classify") == 3
            assert remote.sample("tokenfold_batch_size_sum") == 3
            assert remote.sample("tokenfold_tokens_total", task="classify", kind="in") == 51
            spent = remote.sample("tokenfold_flops_total", task="classify", kind="spent")
            saved = remote.sample("tokenfold_flops_total", task="classify", kind="saved")
            assert (spent + saved) % 3 == 0
            assert saved > 0
            weights = remote.sample("tokenfold_model_memory_bytes", model="colours", kind="weights")
            assert weights == (bundles / "a" / "model.onnx").stat().st_size
            peak = remote.sample("tokenfold_model_memory_bytes", model="colours", kind="peak")
            assert peak > 0
            assert remote.sample("process_resident_memory_bytes") > 1e6

    def test_the_first_bucket_is_a_millisecond(self, client: Remote) -> None:
        client.classify(picture())
        text = client.get("/metrics").text
        labels = '{le="0.001",stage="infer",task="classify"}'
        assert "tokenfold_stage_duration_seconds_bucket" + labels in text
        assert "_created" not in text

    def test_the_format_follows_the_accept_header(self, client: Remote) -> None:
        response = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        assert response.text.endswith("# EOF\n")
        plain = client.get("/metrics").headers["content-type"]
        assert plain.startswith("text/plain; version=")

    def test_apps_in_one_process_have_separate_metrics(self, bundles: Path, client: Remote) -> None:
        client.classify(picture())
        with serving(create_app(standin.settings(bundles))) as second_server:
            assert second_server.sample("tokenfold_images_total", task="classify") == 0
