"""The measurement of looking again at the best of a search."""

from __future__ import annotations

import json

import pytest

from load_tests import rerank


def test_it_asks_each_kind_of_text_with_and_without(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--images", "12", "--texts", "3", "--candidates", "4", "--json"]
    assert rerank.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["texts"], one["rerank"]) for one in found] == [
        ("captions", 0),
        ("captions", 4),
        ("descriptions", 0),
        ("descriptions", 4),
    ]
    assert all(0 <= one["first"] <= one["among_five"] <= 1 for one in found)
    # Among twelve images a description finds its own.
    assert found[2]["first"] == 1


def test_a_number_out_of_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rerank.main(["--candidates", "0"])
    assert "between 1 and 100" in capsys.readouterr().err
