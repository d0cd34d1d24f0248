"""How fast photos are decoded: by threads, by processes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from load_tests import decoding
from load_tests.images import jpeg, synthetic


def test_the_command_prints_its_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(synthetic(60, 80)))
    line = [str(photo), "--callers", "1", "2", "--rounds", "1", "--seconds", "0.2", "--size", "16"]
    assert decoding.main([*line, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["photo"], row["callers"]) for row in rows] == [("photo.jpg", 1), ("photo.jpg", 2)]
    for row in rows:
        for how in ("threads", "processes"):
            assert row[how]["per_second"] > 0
            assert row[how]["busy"] > 0


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(synthetic(60, 80)))
    line = [str(photo), "--callers", "1", "--rounds", "1", "--seconds", "0.1", "--size", "16"]
    assert decoding.main(line) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("| photo.jpg | 1 | ")
    assert last.count("|") == 8


@pytest.mark.parametrize(
    "arguments", [["/does/not/exist"], ["--callers", "0"], ["--size", "1"], ["--seconds", "nan"]]
)
def test_the_command_refuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        decoding.main(arguments)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err
