"""The measurement of reranking."""

from __future__ import annotations

import json

import pytest

from load_tests import rerank


def test_measures_each_kind_of_text_with_and_without_reranking(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--images", "12", "--texts", "3", "--candidates", "4", "--json"]
    assert rerank.main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(result["texts"], result["rerank"]) for result in results] == [
        ("captions", 0),
        ("captions", 4),
        ("descriptions", 0),
        ("descriptions", 4),
    ]
    assert all(0 <= result["first"] <= result["among_five"] <= 1 for result in results)
    # Among twelve images, a description ranks its own image first.
    assert results[2]["first"] == 1


def test_a_number_out_of_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rerank.main(["--candidates", "0"])
    assert "between 1 and 100" in capsys.readouterr().err
