"""Tests of GET /v1/models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.standin import LABELS, Remote, bundle, picture, serving, settings
from tokenfold.runtime.libraries import VARIABLES
from tokenfold.service.app import create_app


def test_models_are_listed_with_their_levels(client: Remote) -> None:
    listed = client.get("/v1/models").json()
    assert listed["default"] == {"classify": "colours"}
    assert [model["name"] for model in listed["models"]] == ["colours", "plain"]
    colours = client.get("/v1/models/colours").json()
    assert colours == listed["models"][0] | {
        "levels": colours["levels"],
        "tasks": [{"name": "classify", "label_count": 3, "labels": list(LABELS)}],
    }
    assert listed["models"][0]["tasks"] == [{"name": "classify", "label_count": 3}]
    assert [level["name"] for level in colours["levels"]] == ["exact", "balanced", "fast"]
    exact, *_, fast = colours["levels"]
    assert fast["expected_ms"] < exact["expected_ms"]
    assert exact["quality"]["classify"]["value"] == 0.9
    assert exact["latency"] == [{"batch": 1, "p50_ms": 1000.0, "p99_ms": 2000.0}]


def test_a_damaged_op_library_is_reported_and_portable_ops_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "ops.so"
    damaged.write_bytes(b"not a library")
    monkeypatch.setenv(VARIABLES["cpu"], str(damaged))
    bundle(tmp_path / "bundles" / "a")
    with serving(create_app(settings(tmp_path / "bundles"))) as remote:
        (model,) = remote.get("/v1/models").json()["models"]
        assert remote.classify(picture("red")).json()["results"][0]["predictions"]
    assert model["native_ops"] is False
    assert "ops.so cannot be loaded" in model["portable_ops_reason"]
    assert "portable ops run on the CPU, which is slower: ops.so" in caplog.text
