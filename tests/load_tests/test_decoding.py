"""The load generator for decoding: threads, processes and invalid options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from load_tests import decoding
from load_tests.images import jpeg, synthetic


def test_the_command_prints_its_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(synthetic(60, 80)))
    arguments = [
        str(photo),
        "--callers",
        "1",
        "2",
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--size",
        "16",
    ]
    assert decoding.main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["photo"], row["callers"]) for row in rows] == [("photo.jpg", 1), ("photo.jpg", 2)]
    for row in rows:
        for kind in ("threads", "processes"):
            assert row[kind]["per_second"] > 0
            assert row[kind]["busy"] > 0


def test_default_output_is_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(synthetic(60, 80)))
    arguments = [str(photo), "--callers", "1", "--rounds", "1", "--seconds", "0.1", "--size", "16"]
    assert decoding.main(arguments) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("| photo.jpg | 1 | ")
    assert last.count("|") == 8


@pytest.mark.parametrize(
    "arguments", [["/does/not/exist"], ["--callers", "0"], ["--size", "1"], ["--seconds", "nan"]]
)
def test_invalid_options_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        decoding.main(arguments)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err
