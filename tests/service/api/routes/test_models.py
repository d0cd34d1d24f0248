"""Tests of GET /v1/models."""

from __future__ import annotations

from tests.service.standin import LABELS, Remote


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
